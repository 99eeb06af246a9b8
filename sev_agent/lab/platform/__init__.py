"""Compute hosts without SEV hardware: real libvirtd and QEMU in namespaces, over a simulated SEV platform."""
