"""Root disk, config drive, and the controller they hang on."""

from sev_agent.domain.element import Element, add
from sev_agent.domain.spec import ConfigDrive, Disk, DomainSpec
from sev_agent.domain.virtio import add_iommu
from sev_agent.sev.image_properties import CdromBus, DiskBus


def configure(spec: DomainSpec, devices: Element) -> None:
    _disk(spec.disk, devices)
    _config_drive(spec.config_drive, devices)
    _scsi_controller(spec, devices)


def _disk(disk: Disk, devices: Element) -> None:
    element = add(devices, "disk", type="file", device="disk")
    driver = add(element, "driver", name="qemu", type=disk.format.value, cache=disk.cache.value, discard="unmap")
    add(element, "source", file=str(disk.path))
    match disk.bus:
        case DiskBus.VIRTIO:
            driver.set("iommu", "on")
            add(element, "target", dev="vda", bus="virtio")
            add(element, "boot", order="1")
        case DiskBus.SCSI | DiskBus.SATA:
            add(element, "target", dev="sda", bus=disk.bus.value)
            add(element, "boot", order="1")
            _address(element, unit=0)


def _config_drive(drive: ConfigDrive, devices: Element) -> None:
    element = add(devices, "disk", type="file", device="cdrom")
    add(element, "driver", name="qemu", type="raw")
    add(element, "source", file=str(drive.path))
    add(element, "target", dev="sdb", bus=drive.bus.value)
    add(element, "readonly")
    _address(element, unit=1)


def _address(element: Element, *, unit: int) -> None:
    """A place by name: libvirt would derive it from the target's name, differently on each bus."""
    # On virtio-scsi the unit is a logical unit of target 0, on SATA a port.
    add(element, "address", type="drive", controller="0", bus="0", target="0", unit=str(unit))


def _scsi_controller(spec: DomainSpec, devices: Element) -> None:
    if spec.disk.bus is DiskBus.SCSI or spec.config_drive.bus is CdromBus.SCSI:
        controller = add(devices, "controller", type="scsi", index="0", model=spec.scsi_model.value)
        add_iommu(controller)
