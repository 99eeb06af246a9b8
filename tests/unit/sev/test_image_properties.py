from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sev_agent.sev.image_properties import CdromBus, DiskBus, FirmwareType, ImageProperties, KernelImages, ScsiModel
from sev_agent.sev.refusals import FirmwareNotUefi, KernelInvalid, RequestRefused
from sev_agent.sev.rules import judge

UEFI = {"hw_firmware_type": "uefi"}


def test_defaults() -> None:
    """What an image does not say is what an encrypted guest can have; the firmware it must say."""
    assert ImageProperties.read(UEFI) == ImageProperties(
        firmware_type=FirmwareType.UEFI,
        machine_type="q35",
        disk_bus=DiskBus.SCSI,
        cdrom_bus=CdromBus.SCSI,
        scsi_model=ScsiModel.VIRTIO_SCSI,
    )
    with pytest.raises(FirmwareNotUefi):
        ImageProperties.read({})


@pytest.mark.parametrize(
    ("disk", "asked", "cdrom"),
    [
        (None, None, CdromBus.SCSI),
        ("scsi", None, CdromBus.SCSI),
        ("virtio", None, CdromBus.SATA),
        ("sata", None, CdromBus.SATA),
        ("virtio", "scsi", CdromBus.SCSI),
        ("scsi", "sata", CdromBus.SATA),
    ],
)
def test_cdrom_bus(disk: str | None, asked: str | None, cdrom: CdromBus) -> None:
    """The CD-ROM is on the bus asked for, else where the guest has a driver for it."""
    said = {"hw_disk_bus": disk, "hw_cdrom_bus": asked}
    assert ImageProperties.read(UEFI | {k: v for k, v in said.items() if v is not None}).cdrom_bus is cdrom


@pytest.mark.parametrize("name", ["hw_scsi_model", "hw_scsi_mode"])
def test_scsi_model_spellings(name: str) -> None:
    """The SCSI model is read under both of its names."""
    assert ImageProperties.read(UEFI | {name: "virtio-scsi"}).scsi_model is ScsiModel.VIRTIO_SCSI


_values = st.sampled_from(
    ["uefi", "bios", "q35", "pc", "scsi", "sata", "ide", "virtio", "virtio-scsi", "true", "required"]
)
_names = st.sampled_from(
    [
        "hw_firmware_type",
        "hw_machine_type",
        "hw_cdrom_bus",
        "hw_disk_bus",
        "hw_scsi_model",
        "hw_scsi_mode",
        "hw_vif_model",
        "os_secure_boot",
        "hw_firmware_stateless",
        "architecture",
    ]
)


@given(st.dictionaries(_names, _values | st.text(max_size=3)))
def test_agrees_with_the_rules(properties: dict[str, str]) -> None:
    """Properties can be read exactly where the rules accept them."""
    flavor = {"hw:mem_encryption": "true"}
    accepted = all(verdict.ok for verdict in judge(flavor, properties | {"hw_mem_encryption": "true"}))
    try:
        ImageProperties.read(properties)
    except RequestRefused:
        assert not accepted
    else:
        assert accepted


_KERNEL = "0d9e4c2e-6a0b-4f6d-8a52-1d4f3f2b9c10"
_RAMDISK = "0d9e4c2e-6a0b-4f6d-8a52-1d4f3f2b9c11"


def test_kernel() -> None:
    """An image may name a kernel, a RAM disk and a command line, as Nova's images do; empty names are none."""
    named = {"kernel_id": _KERNEL, "ramdisk_id": _RAMDISK, "os_command_line": "quiet"}

    assert ImageProperties.read(UEFI | named).kernel == KernelImages(
        kernel=UUID(_KERNEL), ramdisk=UUID(_RAMDISK), command_line="quiet"
    )
    assert ImageProperties.read(UEFI | {"kernel_id": "", "ramdisk_id": ""}).kernel is None


@pytest.mark.parametrize(
    ("properties", "culprit"),
    [
        ({"kernel_id": "vmlinuz"}, "kernel_id"),
        ({"kernel_id": "../../etc/passwd"}, "kernel_id"),
        ({"kernel_id": _KERNEL, "ramdisk_id": "x"}, "ramdisk_id"),
        ({"ramdisk_id": _RAMDISK}, "ramdisk_id"),
        ({"kernel_id": _KERNEL, "os_command_line": "x" * 2048}, "os_command_line"),
        ({"kernel_id": _KERNEL, "os_command_line": "a\nb"}, "os_command_line"),
    ],
)
def test_kernel_refused(properties: dict[str, str], culprit: str) -> None:
    """What is no image's UUID, stands alone, or no kernel could read, is refused with its property."""
    with pytest.raises(KernelInvalid) as caught:
        ImageProperties.read(UEFI | properties)
    assert caught.value.field == f"image.properties.{culprit}"
    assert caught.value.remedy


def test_stateless() -> None:
    """Stateless firmware is what an image asks for, and otherwise not."""
    assert ImageProperties.read(UEFI | {"hw_firmware_stateless": "True"}).stateless
    assert not ImageProperties.read(UEFI).stateless
