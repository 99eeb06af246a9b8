"""``sev-agent firmware`` on the descriptors of Debian's releases, and of hosts with and without SEV builds."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from sev_agent.cli.main import app
from tests.golden.cases import DIRECTORY

SETS = DIRECTORY / "firmware"
NAMES = ("debian-12", "debian-13", "debian-13-amdsev", "debian-12-masked", "own-build")


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(
        app, ["firmware", *map(str, arguments)], env={"COLUMNS": "250", "NO_COLOR": "1"}, catch_exceptions=False
    )


def told(*arguments: str | Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(run(*arguments, "--json").output)
    return found


@pytest.mark.parametrize("stateless", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_table(name: str, stateless: bool, request: pytest.FixtureRequest) -> None:  # noqa: FBT001 - of the test
    """Every candidate has its reason, and every generation its firmware or its remedy: as the golden table says."""
    result = run("--root", SETS / name, *(["--stateless"] if stateless else []))
    table = "".join(f"{line.rstrip()}\n" for line in result.output.splitlines())
    path = SETS / f"{name}{'.stateless' if stateless else ''}.txt"
    if request.config.getoption("--update-golden"):
        path.write_text(table)
    assert result.exit_code == 0
    assert table == path.read_text()


@pytest.mark.parametrize(
    ("name", "stateless", "taken"),
    [
        ("debian-12", False, ["/usr/share/OVMF/OVMF_CODE_4M.fd", None, None]),
        ("debian-13", False, ["/usr/share/OVMF/OVMF_CODE_4M.fd", None, None]),
        ("debian-13-amdsev", False, ["/usr/share/OVMF/OVMF_CODE_4M.fd", None, "/usr/share/ovmf/OVMF.amdsev.fd"]),
        ("debian-13-amdsev", True, ["/usr/share/ovmf/OVMF.amdsev.fd"] * 3),
        ("debian-12-masked", False, [None, None, None]),
        ("own-build", False, ["/opt/ovmf/OVMF_CODE.fd", "/opt/ovmf/OVMF_CODE.fd", None]),
        ("own-build", True, ["/opt/ovmf/OVMF.fd", "/opt/ovmf/OVMF.fd", None]),
    ],
)
def test_choice(name: str, stateless: bool, taken: list[str | None]) -> None:  # noqa: FBT001 - of the test
    """SEV, SEV-ES and SEV-SNP get what their generation and their image allow; the site's own comes first."""
    found = told("--root", SETS / name, *(["--stateless"] if stateless else []))

    assert [each["taken"] and each["taken"]["code"] for each in found] == taken
    assert [each["remedy"] is None for each in found] == [code is not None for code in taken]
    assert all(candidate["reason"] for each in found for candidate in each["candidates"])


def test_digest(tmp_path: Path) -> None:
    """The firmware's digest is of the file below the root."""
    descriptors = tmp_path / "usr/share/qemu/firmware"
    descriptors.mkdir(parents=True)
    (descriptors / "60.json").write_bytes((SETS / "debian-12/usr/share/qemu/firmware/60-edk2-x86_64.json").read_bytes())
    code = tmp_path / "usr/share/OVMF/OVMF_CODE_4M.fd"
    code.parent.mkdir(parents=True)
    code.write_bytes(b"firmware")

    (found,) = told("--root", tmp_path, "--generation", "amd-sev")

    assert found["taken"]["sha256"] == hashlib.sha256(b"firmware").hexdigest()
    assert found["taken"]["mapping"] == "flash"


@pytest.mark.parametrize(("generation", "status"), [("amd-sev", 0), ("amd-sev-snp", 1), ("amd-tdx", 2)])
def test_exit_status(generation: str, status: int) -> None:
    """A generation that was asked for and has no firmware is a failure; one that does not exist is wrong usage."""
    assert run("--root", SETS / "debian-12", "--generation", generation).exit_code == status


def test_without_any_descriptor(tmp_path: Path) -> None:
    """A host without descriptors is told what to install."""
    result = run("--root", tmp_path)

    assert result.output.count("none:") == 3
    assert "ovmf-amdsev" in result.output
