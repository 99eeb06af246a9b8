"""Memory-encrypted virtual machines on OpenStack."""

__version__ = "0.1.0"
