"""The layers of a host, from the silicon up: a fault lies in one of them, and is mended there."""

from enum import StrEnum


class Layer(StrEnum):
    """In the order in which they depend on each other, so that the first faulty one is to be mended first."""

    CPU = "CPU"
    BIOS = "BIOS"
    KERNEL_BUILD = "kernel build"
    BOOT_LINE = "boot line"
    KERNEL_MODULE = "kernel module"
    SECURE_PROCESSOR = "secure processor"
    DEVICE_NODES = "device nodes"
    LIMITS = "limits"
    LIBVIRT = "libvirt"
    QEMU = "QEMU"
    OVMF = "OVMF"
    PLACEMENT = "Placement"
    RABBITMQ = "RabbitMQ"

    @property
    def depth(self) -> int:
        """Its place in the order, 0 for the lowest."""
        return list(Layer).index(self)
