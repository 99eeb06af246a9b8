"""A captured host is judged as the host itself."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from sev_agent.host.capture import CaptureRefused, capture
from sev_agent.host.examination import Report, examine
from sev_agent.host.inquiry import gather
from sev_agent.hypervisor.capabilities import DomainCapabilities
from sev_agent.hypervisor.errors import HypervisorUnavailable
from sev_agent.hypervisor.host_files import HostFiles
from tests.hosts import contents, faults, unpack, with_fault

HOSTS = ("first-generation", "second-generation", "third-generation", "fourth-generation", "intel", "virtual-machine")


def judge(root: Path) -> Report:
    return examine(asyncio.run(gather(HostFiles(root), None)))


def said(report: Report) -> list[tuple[str, str, str]]:
    return [(result.check.name, result.outcome.value, result.finding.found) for result in report.results]


@pytest.mark.parametrize("host", HOSTS)
def test_a_capture_gives_the_same_findings(host: str, tmp_path: Path) -> None:
    """Every check finds in it what it found in the host."""
    root = unpack(contents(host), tmp_path / "host")
    capture(HostFiles(root), None, tmp_path / "new")
    there, here = judge(root), judge(tmp_path / "new")
    assert [(name, outcome) for name, outcome, _ in said(here)] == [(name, outcome) for name, outcome, _ in said(there)]
    assert said(here) == [(name, outcome, found.replace("/host/", "/new/")) for name, outcome, found in said(there)]


@pytest.mark.parametrize("fault", faults()[::7], ids=lambda fault: str(fault["name"]))
def test_a_capture_keeps_the_fault(fault: dict[str, Any], tmp_path: Path) -> None:
    """So that it can be sent to somebody who finds it."""
    root = unpack(with_fault(fault), tmp_path / "host")
    capture(HostFiles(root), None, tmp_path / "new")
    outcomes = [(name, outcome) for name, outcome, _ in said(judge(root))]
    assert [(name, outcome) for name, outcome, _ in said(judge(tmp_path / "new"))] == outcomes


def test_what_libvirt_says_is_captured(tmp_path: Path) -> None:
    """Its answer word for word; where it has none, why."""
    files = HostFiles(unpack(contents("third-generation"), tmp_path / "host"))
    answer = DomainCapabilities(xml="<domainCapabilities/>", libvirt_version="10.5.0", emulator_version="9.1.0")
    capture(files, answer, tmp_path / "answered")
    capture(files, HypervisorUnavailable("no socket"), tmp_path / "silent")
    found = {
        name: {result.check.name: result.finding.found for result in judge(tmp_path / name).results}
        for name in ("answered", "silent")
    }
    assert found["answered"]["libvirt.version"] == "10.5.0"
    assert found["answered"]["qemu.version_sev"] == "9.1.0"
    assert found["silent"]["libvirt.reachable"] == "no socket"


def test_no_secret_is_captured(tmp_path: Path) -> None:
    """Of GRUB's file only what starts kernels, of users and groups only those who may open the devices."""
    files = contents("third-generation")
    files["boot/grub/grub.cfg"] += "password_pbkdf2 root grub.pbkdf2.sha512.10000.C0FFEE\n"
    files["etc/passwd"] += "somebody:x:4711:4711::/home/somebody:/bin/sh\n"
    capture(HostFiles(unpack(files, tmp_path / "host")), None, tmp_path / "new")
    text = "".join(path.read_text() for path in (tmp_path / "new").rglob("*") if path.is_file())
    assert "C0FFEE" not in text
    assert "somebody" not in text


def test_a_directory_with_something_in_it_is_refused(tmp_path: Path) -> None:
    """Two hosts must not become one."""
    (tmp_path / "a").touch()
    with pytest.raises(CaptureRefused, match="is not empty"):
        capture(HostFiles(Path("/")), None, tmp_path)


def test_this_machine_is_captured(tmp_path: Path) -> None:
    """Whatever can be read here; the capture is judged without the machine."""
    assert capture(HostFiles(Path("/")), None, tmp_path / "new") > 3
    live = examine(asyncio.run(gather(HostFiles(Path("/")), None)))
    captured = judge(tmp_path / "new")
    for generation, verdict in live.verdicts.items():
        if verdict.mend is not None and verdict.mend.check.layer.value in {"CPU", "BIOS"}:
            mend = captured.verdicts[generation].mend
            assert mend is not None
            assert mend.check.name == verdict.mend.check.name
