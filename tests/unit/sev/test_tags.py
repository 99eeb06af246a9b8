import pytest
from hypothesis import given
from hypothesis import strategies as st

from sev_agent.sev import tags
from sev_agent.sev.generation import Generation
from sev_agent.sev.rules import encryption_request


def test_an_untagged_image() -> None:
    """An image without properties gets the method's five."""
    assert tags.image_changes({}) == {
        "hw_firmware_type": "uefi",
        "hw_cdrom_bus": "scsi",
        "hw_mem_encryption": "True",
        "hw_machine_type": "q35",
        "hw_scsi_model": "virtio-scsi",
    }


def test_a_tagged_image() -> None:
    """A tagged image needs no change."""
    assert tags.image_changes({**tags.IMAGE, "os_distro": "debian"}) == {}


@pytest.mark.parametrize(
    ("has", "changes"),
    [
        ({"hw_machine_type": "pc-q35-9.2", "hw_cdrom_bus": "sata", "hw_mem_encryption": "yes"}, {}),
        ({"hw_machine_type": "pc"}, {"hw_machine_type": "q35"}),
        ({"hw_cdrom_bus": "ide"}, {"hw_cdrom_bus": "scsi"}),
        ({"hw_firmware_type": "bios"}, {"hw_firmware_type": "uefi"}),
        ({"hw_mem_encryption": "false"}, {"hw_mem_encryption": "True"}),
        ({"hw_mem_encryption": "perhaps"}, {"hw_mem_encryption": "True"}),
        ({"hw_scsi_model": "lsilogic"}, {"hw_scsi_model": "virtio-scsi"}),
        ({"hw_scsi_mode": "virtio-scsi"}, {}),
        ({"hw_scsi_mode": "lsilogic"}, {"hw_scsi_mode": None}),
    ],
)
def test_only_what_would_be_refused_is_changed(has: dict[str, str], changes: dict[str, str | None]) -> None:
    """A value that an encrypted guest can have is left; the others are replaced, a contradicting spelling removed."""
    assert tags.image_changes({**tags.IMAGE, **has}) == changes


def test_generation() -> None:
    """The generation is set where it is asked for and not there."""
    tagged = {**tags.IMAGE, "hw_mem_encryption_model": "amd-sev"}
    assert tags.image_changes(tagged) == {}
    assert tags.image_changes(tagged, Generation.SEV) == {}
    assert tags.image_changes(tagged, Generation.SEV_ES) == {"hw_mem_encryption_model": "amd-sev-es"}
    assert tags.flavor_tags() == {"hw:mem_encryption": "True"}
    assert tags.flavor_tags(Generation.SEV) == {"hw:mem_encryption": "True", "hw:mem_encryption_model": "amd-sev"}


_values = st.sampled_from(["uefi", "bios", "q35", "pc", "scsi", "ide", "virtio-scsi", "true", "no"]) | st.text(
    max_size=3
)
_names = st.sampled_from([*tags.IMAGE, "hw_scsi_mode"])


@given(st.dictionaries(_names, _values), st.none() | st.sampled_from(Generation))
def test_a_tagged_image_is_accepted(properties: dict[str, str], generation: Generation | None) -> None:
    """Whatever an image says of the method's properties: once tagged, the rules take it, and tag changes no more."""
    tagged = tags.changed(properties, tags.image_changes(properties, generation))
    encryption_request(tags.flavor_tags(generation), tagged)
    assert tags.image_changes(tagged, generation) == {}


def test_snp_keeps_no_variables() -> None:
    """An image for SEV-SNP is tagged for firmware without variables of its own; one for another generation is not."""
    stateless = "hw_firmware_stateless"
    assert tags.image_changes(tags.IMAGE, Generation.SEV_SNP)[stateless] == "True"
    assert tags.image_changes({**tags.IMAGE, "hw_mem_encryption_model": "amd-sev-snp"}) == {stateless: "True"}
    assert stateless not in tags.image_changes(tags.IMAGE, Generation.SEV_ES)
