"""From an instance to the libvirt domain that runs it. Pure."""
