"""What libvirt runs in QEMU's place. Standard library only: a copy works without the project."""
