from dataclasses import replace
from pathlib import Path

import pytest

from sev_agent.domain import storage
from sev_agent.domain.spec import ConfigDrive, DiskCache, DiskFormat
from sev_agent.sev.image_properties import CdromBus, DiskBus
from tests.golden.cases import MINIMAL
from tests.unit.domain.configured import configured, texts

CONTROLLER = '<controller type="scsi" index="0" model="virtio-scsi"><driver iommu="on"/></controller>'


def test_scsi() -> None:
    """Disk and CD-ROM share one virtio-scsi controller, at places of their own; the disk boots."""
    disk, cdrom, controller = texts(configured(storage.configure))

    assert '<target dev="sda" bus="scsi"/><boot order="1"/>' in disk
    assert 'unit="0"/></disk>' in disk
    assert '<target dev="sdb" bus="scsi"/><readonly/>' in cdrom
    assert 'unit="1"/></disk>' in cdrom
    assert "boot" not in cdrom
    assert controller == CONTROLLER


@pytest.mark.parametrize(
    ("disk", "cdrom", "controllers"),
    [
        (DiskBus.SCSI, CdromBus.SATA, 1),
        (DiskBus.VIRTIO, CdromBus.SCSI, 1),
        (DiskBus.VIRTIO, CdromBus.SATA, 0),
        (DiskBus.SATA, CdromBus.SATA, 0),
        (DiskBus.SATA, CdromBus.SCSI, 1),
    ],
)
def test_controller_where_needed(disk: DiskBus, cdrom: CdromBus, controllers: int) -> None:
    """There is a SCSI controller where something hangs on it; targets never share a name."""
    devices = configured(
        storage.configure,
        disk=replace(MINIMAL.disk, bus=disk),
        config_drive=ConfigDrive(path=Path("/c.iso"), bus=cdrom),
    )

    targets = [target.get("dev") for target in devices.iterfind("disk/target")]
    assert len(devices.findall("controller")) == controllers
    assert len(set(targets)) == 2


def test_iommu_is_on_the_disk_that_is_virtio() -> None:
    """A virtio-blk disk has iommu itself; on other buses its controller has it, and libvirt refuses it on the disk."""
    virtio = configured(storage.configure, disk=replace(MINIMAL.disk, bus=DiskBus.VIRTIO))
    scsi = configured(storage.configure)

    assert [driver.get("iommu") for driver in virtio.iterfind("disk/driver")] == ["on", None]
    assert [driver.get("iommu") for driver in scsi.iterfind("disk/driver")] == [None, None]


def test_format_and_cache() -> None:
    """Format and caching are the disk's own; the config drive is raw."""
    disk = replace(MINIMAL.disk, format=DiskFormat.RAW, cache=DiskCache.NONE)

    first, second = configured(storage.configure, disk=disk).iterfind("disk/driver")

    assert (first.get("type"), first.get("cache"), first.get("discard")) == ("raw", "none", "unmap")
    assert second.get("type") == "raw"
