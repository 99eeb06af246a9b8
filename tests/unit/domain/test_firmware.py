import json
from pathlib import Path
from typing import Any

import pytest

from sev_agent.domain.firmware import (
    DescriptorFile,
    FirmwareWanted,
    FlashBuild,
    MemoryBuild,
    NoFirmware,
    choose_firmware,
    effective,
)
from sev_agent.domain.spec import DiskFormat
from sev_agent.sev.generation import Generation

LOCAL = Path("/etc/qemu/firmware")
SHIPPED = Path("/usr/share/qemu/firmware")


def flash(code: str = "CODE.fd", **changes: Any) -> dict[str, Any]:
    """A descriptor that fits a SEV guest, with ``changes``."""
    return {
        "description": code,
        "interface-types": ["uefi"],
        "mapping": {
            "device": "flash",
            "executable": {"filename": f"/fw/{code}", "format": "raw"},
            "nvram-template": {"filename": "/fw/VARS.fd", "format": "qcow2"},
        },
        "targets": [{"architecture": "x86_64", "machines": ["pc-i440fx-*", "pc-q35-*"]}],
        "features": ["acpi-s3", "amd-sev", "verbose-dynamic"],
        "tags": [],
    } | changes


def at(path: Path, descriptor: Any) -> DescriptorFile:
    return DescriptorFile(path, descriptor if isinstance(descriptor, str) else json.dumps(descriptor))


def wants(generation: Generation, **changes: Any) -> FirmwareWanted:
    """What a guest of ``generation`` needs, with ``changes``."""
    return FirmwareWanted(generation=generation, **changes)


DEBIAN = (
    at(SHIPPED / "40-enrolled.json", flash(features=["amd-sev", "enrolled-keys", "requires-smm", "secure-boot"])),
    at(SHIPPED / "50-secure.json", flash(features=["amd-sev", "requires-smm", "secure-boot"])),
    at(SHIPPED / "60-plain.json", flash("PLAIN.fd")),
)


def test_debian() -> None:
    """Of Debian 12's three descriptors, the one without Secure Boot is taken, and each has its reason."""
    choice = choose_firmware(DEBIAN, wants(Generation.SEV))

    assert choice.descriptor == SHIPPED / "60-plain.json"
    assert choice.build == FlashBuild(
        code=Path("/fw/PLAIN.fd"),
        code_format=DiskFormat.RAW,
        nvram_template=Path("/fw/VARS.fd"),
        nvram_format=DiskFormat.QCOW2,
    )
    assert [candidate.accepted for candidate in choice.candidates] == [False, False, True]
    assert "system management mode" in choice.candidates[0].reason


def test_generation_is_a_feature() -> None:
    """Firmware that knows only SEV is not given to a SEV-ES guest."""
    with pytest.raises(NoFirmware, match="lacks feature amd-sev-es"):
        choose_firmware(DEBIAN, wants(Generation.SEV_ES))
    both = at(SHIPPED / "70.json", flash("ES.fd", features=["amd-sev", "amd-sev-es"]))
    assert choose_firmware((*DEBIAN, both), wants(Generation.SEV_ES)).code == Path("/fw/ES.fd")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"interface-types": ["bios"]}, "interface is bios"),
        ({"targets": [{"architecture": "i386", "machines": ["pc-q35-*"]}]}, "not for x86_64"),
        ({"targets": [{"architecture": "x86_64", "machines": ["pc-i440fx-*"]}]}, "machine type q35"),
        ({"mapping": {"device": "memory", "filename": "/fw/x"}}, "mapped as memory"),
        ({"mapping": {"device": "kernel", "filename": "/fw/x"}}, "mapped as kernel"),
        (
            {"mapping": {"device": "flash", "mode": "stateless", "executable": {"filename": "/fw/x", "format": "raw"}}},
            "mode stateless",
        ),
        ({"mapping": {"device": "flash", "executable": {"filename": "/fw/x", "format": "raw"}}}, "NVRAM template"),
        ({"features": []}, "lacks feature amd-sev"),
        ({"features": ["amd-sev", "secure-boot"]}, "does not ask for"),
        ({"features": ["amd-sev", "enrolled-keys"]}, "does not ask for"),
        ({"features": "all"}, "no firmware descriptor: features"),
        ({"mapping": {"device": "tape"}}, "no firmware descriptor: mapping"),
    ],
)
def test_refused(changes: dict[str, Any], reason: str) -> None:
    """Each way in which firmware does not fit has its own reason, in the error too."""
    with pytest.raises(NoFirmware, match=reason) as caught:
        choose_firmware([at(SHIPPED / "50.json", flash(**changes))], wants(Generation.SEV))
    assert caught.value.retryable
    assert "install OVMF" in str(caught.value)


@pytest.mark.parametrize("text", ["{", "[]", "null", '"uefi"', "[" * 100_000, "\ufffd"])
def test_garbage_hides_nothing(text: str) -> None:
    """A file that is no descriptor is a rejected candidate, and the next is looked at."""
    choice = choose_firmware((at(LOCAL / "10.json", text), *DEBIAN), wants(Generation.SEV))

    assert choice.descriptor == SHIPPED / "60-plain.json"
    assert choice.candidates[0].path == LOCAL / "10.json"
    assert not choice.candidates[0].accepted


def test_none() -> None:
    """A host without descriptors says so."""
    with pytest.raises(NoFirmware, match="there is no descriptor"):
        choose_firmware([], wants(Generation.SEV))


MEMORY = flash(
    mapping={"device": "memory", "filename": "/fw/AMDSEV.fd"}, features=["amd-sev", "amd-sev-es", "amd-sev-snp"]
)
STATELESS = flash(
    mapping={"device": "flash", "mode": "stateless", "executable": {"filename": "/fw/SL.fd", "format": "raw"}}
)


def test_snp() -> None:
    """SEV-SNP takes firmware that is mapped as memory; never flash, whatever features it claims."""
    claims = at(SHIPPED / "1.json", flash(features=["amd-sev-snp"]))

    with pytest.raises(NoFirmware, match="needs it mapped as memory"):
        choose_firmware([claims], wants(Generation.SEV_SNP))
    choice = choose_firmware([claims, at(SHIPPED / "2.json", MEMORY)], wants(Generation.SEV_SNP))
    assert choice.build == MemoryBuild(code=Path("/fw/AMDSEV.fd"))


@pytest.mark.parametrize(
    ("asks", "taken"), [(False, Path("/fw/PLAIN.fd")), (True, Path("/fw/SL.fd"))], ids=["keeps", "stateless"]
)
def test_stateless(asks: bool, taken: Path) -> None:  # noqa: FBT001  a parameter of the test
    """Stateless firmware is for images that ask for it, and these get no other."""
    files = [*DEBIAN, at(SHIPPED / "10.json", STATELESS), at(SHIPPED / "70.json", MEMORY)]

    choice = choose_firmware(files, wants(Generation.SEV, asks_stateless=asks))

    assert choice.code == taken
    assert [candidate.accepted for candidate in choice.candidates] == [asks, False, False, not asks, asks]


def test_es_of_a_stateless_build() -> None:
    """Where only a stateless build knows SEV-ES, the refusal says what the image would have to say."""
    files = [*DEBIAN, at(SHIPPED / "70.json", MEMORY)]

    with pytest.raises(NoFirmware, match="hw_firmware_stateless=true"):
        choose_firmware(files, wants(Generation.SEV_ES))
    assert choose_firmware(files, wants(Generation.SEV_ES, asks_stateless=True)).code == Path("/fw/AMDSEV.fd")


def test_local_first_by_name() -> None:
    """Order is of the name across directories; of one name the local one stands; an empty one hides."""
    files = (
        at(LOCAL / "60-plain.json", flash("LOCAL.fd")),
        at(LOCAL / "50-secure.json", ""),
        at(LOCAL / "99-last.json", flash("LAST.fd")),
        *DEBIAN,
    )

    assert [str(file.path.parent) + "/" + file.path.name[:2] for file in effective(files)] == [
        f"{SHIPPED}/40",
        f"{LOCAL}/60",
        f"{LOCAL}/99",
    ]
    choice = choose_firmware(files, wants(Generation.SEV))
    assert choice.code == Path("/fw/LOCAL.fd")
    assert choice.candidates[-1].reason == "fits, but comes later"


def test_secure_boot() -> None:
    """Secure Boot takes firmware that has it and its keys without system management mode."""
    enrolled = at(SHIPPED / "70.json", flash("SB.fd", features=["amd-sev", "secure-boot", "enrolled-keys"]))

    assert choose_firmware((*DEBIAN, enrolled), wants(Generation.SEV, secure_boot=True)).code == Path("/fw/SB.fd")
    with pytest.raises(NoFirmware, match="lacks feature secure-boot, enrolled-keys"):
        choose_firmware(DEBIAN, wants(Generation.SEV, secure_boot=True))


@pytest.mark.parametrize(("machine", "fits"), [("q35", True), ("pc-q35-9.2", True), ("pc-q35-9.1", False)])
def test_machine_version(machine: str, fits: bool) -> None:  # noqa: FBT001  a parameter of the test
    """A descriptor for one version of q35 fits that version; one for all fits the alias."""
    machines = ["pc-q35-*"] if machine == "q35" else ["pc-q35-9.2"]
    files = [at(SHIPPED / "1.json", flash(targets=[{"architecture": "x86_64", "machines": machines}]))]

    if fits:
        choose_firmware(files, wants(Generation.SEV, machine=machine))
    else:
        with pytest.raises(NoFirmware, match=r"machine type pc-q35-9\.1"):
            choose_firmware(files, wants(Generation.SEV, machine=machine))
