import pytest
from hypothesis import given
from hypothesis import strategies as st

from sev_agent.errors import InvalidRequest
from sev_agent.sev import refusals
from sev_agent.sev.generation import Generation
from sev_agent.sev.policy import PolicyBounds, SevPolicy, SnpPolicy
from sev_agent.sev.refusals import RequestRefused, Subject
from sev_agent.sev.rules import RULES, EncryptionRequest, encryption_request, judge
from tests.combinations import COMBINATIONS

FLAVOR = {"hw:mem_encryption": "True"}
IMAGE = {
    "hw_firmware_type": "uefi",
    "hw_cdrom_bus": "scsi",
    "hw_mem_encryption": "True",
    "hw_machine_type": "q35",
    "hw_scsi_model": "virtio-scsi",
}


def refusal(flavor: dict[str, str], image: dict[str, str]) -> RequestRefused:
    """The refusal of a request, which must be refused."""
    with pytest.raises(RequestRefused) as caught:
        encryption_request(flavor, image)
    return caught.value


def test_the_method() -> None:
    """A flavor and an image prepared as the method says make a SEV request with the default policy."""
    expected = EncryptionRequest(Generation.SEV, SevPolicy.from_int(0x33))

    assert encryption_request(FLAVOR, IMAGE) == expected
    assert all(verdict.ok for verdict in judge(FLAVOR, IMAGE))


def test_the_least() -> None:
    """Encryption on both sides and UEFI are enough."""
    encryption_request({"hw:mem_encryption": "1"}, {"hw_mem_encryption": "on", "hw_firmware_type": "uefi"})


@pytest.mark.parametrize(
    ("flavor", "image", "code"),
    [
        (None, None, "sev.flavor_lacks_encryption"),
        (None, "true", "sev.flavor_lacks_encryption"),
        (None, "false", "sev.flavor_lacks_encryption"),
        ("true", None, "sev.image_lacks_encryption"),
        ("true", "false", "sev.conflict"),
        ("false", "true", "sev.conflict"),
        ("false", None, "sev.flavor_lacks_encryption"),
        ("false", "false", "sev.flavor_lacks_encryption"),
        ("maybe", "true", "sev.not_a_boolean"),
        ("true", "", "sev.not_a_boolean"),
        ("false", "maybe", "sev.flavor_lacks_encryption"),
    ],
)
def test_answers(flavor: str | None, image: str | None, code: str) -> None:
    """Every pair of answers but yes and yes has its own refusal."""
    extra_specs = {} if flavor is None else {"hw:mem_encryption": flavor}
    properties = {"hw_firmware_type": "uefi"} | ({} if image is None else {"hw_mem_encryption": image})

    error = refusal(extra_specs, properties)

    assert error.code == code
    assert isinstance(error, InvalidRequest)
    assert not error.retryable


@pytest.mark.parametrize(("flavor", "image", "text"), COMBINATIONS)
def test_seven_combinations(flavor: str | None, image: str | None, text: str | None) -> None:
    """The seven combinations of flavor and image that the method distinguishes: one is accepted, six have a text."""
    extra_specs = {} if flavor is None else {"hw:mem_encryption": flavor}
    properties = {"hw_firmware_type": "uefi"} | ({} if image is None else {"hw_mem_encryption": image})
    if text is None:
        encryption_request(extra_specs, properties)
        return
    caught = refusal(extra_specs, properties)
    assert str(caught) == f"{caught.field}: {text}"


def test_conflict_names_both() -> None:
    """Opposite answers are told with both properties and both answers."""
    text = str(refusal(FLAVOR, IMAGE | {"hw_mem_encryption": "no"}))

    assert "image property 'hw_mem_encryption' is 'no'" in text
    assert "flavor property 'hw:mem_encryption' is 'True'" in text


def test_remedy_of_a_strange_boolean() -> None:
    """What is neither yes nor no is mended by the answer that an encrypted guest needs."""
    assert "hw_mem_encryption=true" in str(refusal(FLAVOR, IMAGE | {"hw_mem_encryption": "2"}))
    assert "hw_firmware_stateless=false" in str(refusal(FLAVOR, IMAGE | {"hw_firmware_stateless": "2"}))


@pytest.mark.parametrize("yes", ["1", "t", "true", "on", "y", "yes", "TRUE", "True", " on "])
def test_yes(yes: str) -> None:
    """Yes is read as oslo.utils reads it."""
    encryption_request({"hw:mem_encryption": yes}, IMAGE)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"hw_firmware_type": None}, refusals.FirmwareNotUefi),
        ({"hw_firmware_type": "bios"}, refusals.FirmwareNotUefi),
        ({"hw_machine_type": "pc"}, refusals.MachineNotQ35),
        ({"hw_machine_type": "pc-i440fx-9.2"}, refusals.MachineNotQ35),
        ({"hw_machine_type": "pc-q35-9.2\n"}, refusals.MachineNotQ35),
        ({"hw_machine_type": "pc-q35-<x>"}, refusals.MachineNotQ35),
        ({"hw_machine_type": ""}, refusals.MachineNotQ35),
        ({"hw_cdrom_bus": "ide"}, refusals.CdromBusUnsupported),
        ({"hw_cdrom_bus": "virtio"}, refusals.CdromBusUnsupported),
        ({"hw_cdrom_bus": "usb"}, refusals.CdromBusUnsupported),
        ({"hw_disk_bus": "ide"}, refusals.DiskBusUnsupported),
        ({"hw_scsi_model": "lsilogic"}, refusals.ScsiModelUnsupported),
        ({"hw_scsi_model": None, "hw_scsi_mode": "lsilogic"}, refusals.ScsiModelUnsupported),
        ({"hw_scsi_mode": "lsilogic"}, refusals.ScsiModelConflict),
        ({"hw_vif_model": "e1000"}, refusals.VifModelUnsupported),
        ({"hw_architecture": "aarch64"}, refusals.ArchitectureUnsupported),
        ({"architecture": "aarch64"}, refusals.ArchitectureUnsupported),
        ({"hw_firmware_stateless": "x"}, refusals.NotABoolean),
        ({"os_secure_boot": "required"}, refusals.SecureBootUnsupported),
        ({"os_secure_boot": "perhaps"}, refusals.SecureBootUnsupported),
        ({"kernel_id": "vmlinuz"}, refusals.KernelInvalid),
        ({"ramdisk_id": "0d9e4c2e-6a0b-4f6d-8a52-1d4f3f2b9c10"}, refusals.KernelInvalid),
        ({"hw_mem_encryption_model": "intel-tdx"}, refusals.ModelUnsupported),
    ],
)
def test_image_refused(changes: dict[str, str | None], error: type[RequestRefused]) -> None:
    """An image property that an encrypted guest cannot have is refused, naming it, its value and what to set."""
    image = {name: value for name, value in (IMAGE | changes).items() if value is not None}
    culprit, value = next(
        (name, image.get(name)) for name, _ in reversed(changes.items()) if name in image or len(changes) == 1
    )
    if error is refusals.ScsiModelConflict:
        culprit, value = "hw_scsi_model", "virtio-scsi"

    caught = refusal(FLAVOR, image)

    assert type(caught) is error
    assert caught.field == f"image.properties.{culprit}"
    assert f"image property '{culprit}' is {'not set' if value is None else repr(value)}" in str(caught)
    assert caught.remedy
    assert caught.remedy.startswith("openstack image ")


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("hw:mem_encryption_model", "intel-tdx", refusals.ModelUnsupported),
        ("hw:mem_encryption_policy", "nodbg,es", refusals.PolicyRefused),
        ("os:secure_boot", "required", refusals.SecureBootUnsupported),
        ("pci_passthrough:alias", "gpu:1", refusals.PassthroughUnsupported),
    ],
)
def test_flavor_refused(name: str, value: str, error: type[RequestRefused]) -> None:
    """A flavor's extra spec that an encrypted guest cannot have is refused, naming it and its value."""
    caught = refusal(FLAVOR | {name: value}, IMAGE)

    assert type(caught) is error
    assert caught.subject is Subject.FLAVOR
    assert caught.field == f"flavor.extra_specs.{name}"
    assert repr(value) in caught.message


@pytest.mark.parametrize(
    "changes",
    [
        {"hw_machine_type": "pc-q35-9.2"},
        {"hw_machine_type": "pc-q35-rhel9.6.0"},
        {"hw_cdrom_bus": "sata"},
        {"hw_disk_bus": "virtio"},
        {"hw_scsi_mode": "virtio-scsi"},
        {"os_secure_boot": "optional"},
        {"hw_mem_encryption_model": "amd-sev"},
        {"hw_firmware_stateless": "true"},
        {"kernel_id": "0d9e4c2e-6a0b-4f6d-8a52-1d4f3f2b9c10", "ramdisk_id": "", "os_command_line": "quiet"},
        {"hw_architecture": "x86_64"},
        {"hw_qemu_guest_agent": "no", "os_distro": "debian"},
    ],
)
def test_image_accepted(changes: dict[str, str]) -> None:
    """What an encrypted guest can have, and what nobody here interprets, is accepted."""
    encryption_request(FLAVOR | {"hw:mem_encryption_model": "amd-sev", "hw:numa_nodes": "1"}, IMAGE | changes)


def test_models_differ() -> None:
    """Flavor and image must name the same generation; one name is enough."""
    flavor = FLAVOR | {"hw:mem_encryption_model": "amd-sev-es"}

    caught = refusal(flavor, IMAGE | {"hw_mem_encryption_model": "amd-sev-snp"})

    assert caught.code == "sev.conflict"
    assert "'amd-sev-es'" in caught.message
    assert "'amd-sev-snp'" in caught.message
    assert encryption_request(flavor, IMAGE).generation is Generation.SEV_ES


SNP = {"hw:mem_encryption_model": "amd-sev-snp"}
STATELESS = {"hw_firmware_stateless": "true"}


def test_snp_needs_stateless_firmware() -> None:
    """SEV-SNP is for images that say that their firmware keeps nothing; the refusal says what to set."""
    error = refusal(FLAVOR | SNP, IMAGE)

    assert error.code == "sev.firmware_stateless"
    assert "is not set, but must be true" in error.message
    assert "hw_firmware_stateless=true" in str(error)
    request = encryption_request(FLAVOR | SNP, IMAGE | STATELESS)
    assert request == EncryptionRequest(Generation.SEV_SNP, SnpPolicy.from_int(0x30000))


def test_policy_of_the_flavor() -> None:
    """A flavor's policy is the guest's, whole."""
    flavor = FLAVOR | SNP | {"hw:mem_encryption_policy": "single_socket,abi=1.51"}

    assert encryption_request(flavor, IMAGE | STATELESS).policy == SnpPolicy.from_int(0x12_0133)


def test_bounds_of_the_operator() -> None:
    """What the operator does not allow is refused with the flavor's property, the default policy included."""
    bounds = PolicyBounds(required=frozenset({"nosend"}))

    with pytest.raises(refusals.PolicyRefused, match="demands nosend") as caught:
        encryption_request(FLAVOR, IMAGE, bounds=bounds)
    assert caught.value.field == "flavor.extra_specs.hw:mem_encryption_policy"
    encryption_request(FLAVOR | {"hw:mem_encryption_policy": "nosend"}, IMAGE, bounds=bounds)


def test_every_rule_has_its_line() -> None:
    """A table of verdicts has one line for each rule, in order, failed or not, and every failure a remedy."""
    verdicts = judge({}, {"hw_machine_type": "pc", "hw_cdrom_bus": "ide"})

    assert [verdict.name for verdict in verdicts] == [rule.name for rule in RULES]
    assert [verdict.property_name for verdict in verdicts if not verdict.ok] == [
        "hw:mem_encryption",
        "hw_mem_encryption",
        "hw_firmware_type",
        "hw_machine_type",
        "hw_cdrom_bus",
    ]
    assert all(bool(verdict.remedy) is not verdict.ok for verdict in verdicts)
    assert "q35 has no IDE controller" in str(verdicts[6].refusal)


def test_codes_are_distinct() -> None:
    """No two refusals share a code."""
    kinds = RequestRefused.__subclasses__()
    assert len({kind.code for kind in kinds}) == len(kinds)


_names = st.sampled_from([rule.property_name for rule in RULES] + ["hw_scsi_mode", "architecture", "x"])
_properties = st.dictionaries(_names, st.text() | st.sampled_from(["true", "uefi", "q35", "scsi", "amd-sev"]))


@given(_properties, _properties)
def test_any_properties(flavor: dict[str, str], image: dict[str, str]) -> None:
    """Whatever flavor and image say, the answer is a request or a refusal; accepted means that every rule is."""
    try:
        encryption_request(flavor, image)
    except RequestRefused:
        accepted = False
    else:
        accepted = True
    assert accepted is all(verdict.ok for verdict in judge(flavor, image))
