"""The hypervisor below: connection, events, capabilities. The only importer of libvirt."""
