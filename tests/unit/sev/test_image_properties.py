import pytest
from hypothesis import given
from hypothesis import strategies as st

from sev_agent.sev.image_properties import CdromBus, DiskBus, FirmwareType, ImageProperties, ScsiModel
from sev_agent.sev.refusals import FirmwareNotUefi, RequestRefused
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
