import uuid
from pathlib import Path

import pytest

from sev_agent.lab.platform.emulator.command_line import Launch
from sev_agent.lab.platform.emulator.failures import LaunchError
from sev_agent.lab.platform.emulator.kind import Kind
from sev_agent.lab.platform.emulator.launch import check_guest, check_host, check_run, generation

SEV, SEV_ES, SEV_SNP = (0x33, "sev-guest"), (0x37, "sev-guest"), (0x30000, "sev-snp-guest")

FOOTER = "96b582de-1fb2-45f7-baea-a366c55a082d"
RESET_VECTOR = "00f771de-1a7e-4fcb-890e-68c77e2fb44e"
METADATA = "dc886566-984a-4798-a75e-5585a7bf67cc"
HASHES = "7255371f-3a3b-4b04-927b-1da6efa8d454"
SOME_HASHES = (0x80FC00).to_bytes(4, "little") + (0x400).to_bytes(4, "little")


def launch(asked: tuple[int, str] = SEV, image: Path | None = None) -> Launch:
    policy, kind = asked
    firmware = "" if image is None else str(image)
    return Launch(kind=kind, policy=policy, firmware=firmware, name="", uuid="", is_flash=kind == "sev-guest")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return write_image(tmp_path, {RESET_VECTOR: bytes(4), METADATA: bytes(4), HASHES: SOME_HASHES})


def write_image(directory: Path, entries: dict[str, bytes]) -> Path:
    """An image with a table as OVMF's build writes it."""
    table = b""
    for name, data in entries.items():
        table += data + (len(data) + 18).to_bytes(2, "little") + uuid.UUID(name).bytes_le
    table += (len(table) + 18).to_bytes(2, "little") + uuid.UUID(FOOTER).bytes_le
    path = directory / "OVMF.fd"
    path.write_bytes(bytes(4096) + table + bytes(32))
    return path


@pytest.mark.parametrize(("asked", "pool"), [(SEV, "sev"), (SEV_ES, "sev_es"), (SEV_SNP, "sev_es")])
def test_each_generation_has_its_pool(asked: tuple[int, str], pool: str) -> None:
    """SEV-ES and SEV-SNP share the lower range of ASIDs."""
    assert generation(launch(asked)).pool == pool


@pytest.mark.parametrize(
    ("asked", "kind"), [(SEV, Kind.SEV), (SEV, Kind.SEV_SNP), (SEV_ES, Kind.SEV_ES), (SEV_SNP, Kind.SEV_SNP)]
)
def test_a_guest_for_the_host_is_launched(asked: tuple[int, str], kind: Kind, image: Path) -> None:
    """The field's default policies pass every check where their generation is offered."""
    wanted = launch(asked, image)
    check_host(wanted, kind)
    check_guest(wanted, kind)
    check_run(wanted)


@pytest.mark.parametrize(
    ("asked", "kind", "text"),
    [
        (SEV, Kind.NONE, "cbitpos check failed, host '0' requested '51'"),
        (SEV_ES, Kind.SEV, "guest policy requires SEV-ES, but host SEV-ES support unavailable"),
        (SEV_SNP, Kind.SEV, "vm-type SEV-SNP not supported by KVM"),
        (SEV_SNP, Kind.SEV_ES, "vm-type SEV-SNP not supported by KVM"),
    ],
)
def test_a_generation_that_the_host_lacks_is_refused(asked: tuple[int, str], kind: Kind, text: str) -> None:
    """Each in QEMU's own words, before a slot is taken."""
    with pytest.raises(LaunchError, match=text):
        check_host(launch(asked), kind)


def test_es_is_excluded_by_snp(image: Path) -> None:
    """Where SEV-SNP is on, the firmware starts no SEV-ES guest."""
    with pytest.raises(LaunchError, match="LAUNCH_START ret=1 fw_error=7"):
        check_guest(launch(SEV_ES, image), Kind.SEV_SNP)


@pytest.mark.parametrize("policy", [0x0002_0033, 0x3801_0033, 0x73], ids=["major", "minor", "reserved"])
def test_the_firmware_refuses_a_policy(policy: int) -> None:
    """A policy that wants a newer interface, or sets a reserved bit, fails at LAUNCH_START with the firmware's code."""
    with pytest.raises(LaunchError) as refused:
        check_guest(launch((policy, "sev-guest")), Kind.SEV)
    assert refused.value.args == (
        "-accel kvm: sev_launch_start: LAUNCH_START ret=1 fw_error=7 'Policy is not allowed'",
        "-accel kvm: sev_common_kvm_init: failed to create encryption context",
        "-accel kvm: failed to initialize kvm: Operation not permitted",
    )


@pytest.mark.parametrize(
    ("policy", "text"),
    [
        (0x10000, "SNP_LAUNCH_START ret=-22 fw_error=0 ''"),
        (0x8003_0000, "SNP_LAUNCH_START ret=-22 fw_error=0 ''"),
        (0x30200, "SNP_LAUNCH_START ret=-5 fw_error=7 'Policy is not allowed'"),
        (0x20000, "SNP_LAUNCH_START ret=-5 fw_error=7 'Policy is not allowed'"),
    ],
    ids=["bit that must be one", "unknown bit", "newer interface", "no threads allowed"],
)
def test_an_snp_policy_is_refused(policy: int, text: str, image: Path) -> None:
    """KVM refuses what has no meaning, the firmware what it does not fulfil."""
    with pytest.raises(LaunchError, match=text):
        check_guest(launch((policy, "sev-snp-guest"), image), Kind.SEV_SNP)


@pytest.mark.parametrize(("asked", "kind"), [(SEV_ES, Kind.SEV_ES), (SEV_SNP, Kind.SEV_SNP)])
def test_firmware_without_a_reset_vector_is_refused(asked: tuple[int, str], kind: Kind, tmp_path: Path) -> None:
    """What keeps registers from the host needs to be told where they begin."""
    image = write_image(tmp_path, {METADATA: bytes(4)})
    with pytest.raises(LaunchError, match="failed to locate and/or save reset vector"):
        check_guest(launch(asked, image), kind)


def test_snp_firmware_needs_metadata_when_it_runs(tmp_path: Path) -> None:
    """QEMU misses it only when it finishes the launch."""
    wanted = launch(SEV_SNP, write_image(tmp_path, {RESET_VECTOR: bytes(4)}))
    check_guest(wanted, Kind.SEV_SNP)
    with pytest.raises(LaunchError, match="Failed to locate SEV metadata header"):
        check_run(wanted)


def test_snp_firmware_is_no_flash(image: Path) -> None:
    """Guests with private memory have none that is read-only."""
    with pytest.raises(LaunchError, match="pflash with kvm requires KVM readonly memory support"):
        check_guest(launch(SEV_SNP, image)._replace(is_flash=True), Kind.SEV_SNP)


@pytest.mark.parametrize(
    ("entries", "text"),
    [
        ({}, "guest firmware has no hashes table GUID"),
        ({HASHES: bytes(8)}, r"hashes table area is invalid \(base=0x0 size=0x0\)"),
    ],
)
def test_kernel_hashes_need_their_place(entries: dict[str, bytes], text: str, tmp_path: Path) -> None:
    """A kernel whose hash is to be measured needs firmware that has room for it."""
    wanted = launch(SEV, write_image(tmp_path, entries))._replace(kernel="/vmlinuz", kernel_hashes=True)
    with pytest.raises(LaunchError, match=text):
        check_guest(wanted, Kind.SEV)
    check_guest(wanted._replace(kernel_hashes=False), Kind.SEV)


def test_kernel_hashes_find_their_place(image: Path) -> None:
    """Firmware with the area is taken."""
    check_guest(launch(SEV, image)._replace(kernel="/vmlinuz", kernel_hashes=True), Kind.SEV)
