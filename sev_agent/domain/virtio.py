"""What every virtio device of an encrypted guest has."""

from sev_agent.domain.element import Element, add


def add_iommu(device: Element) -> None:
    """Make the guest share its buffers through the DMA interface: the device cannot read encrypted memory.

    QEMU 6.0 and later imply it for confidential guests; older ones do not.
    """
    add(device, "driver", iommu="on")
