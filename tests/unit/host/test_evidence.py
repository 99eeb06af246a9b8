"""What a check concludes where its first source cannot be read, and other borders."""

import asyncio
from pathlib import Path

import pytest

from sev_agent.host import kernel
from sev_agent.host.answers import NotAsked
from sev_agent.host.check import Check, Finding, Outcome
from sev_agent.host.evidence import Evidence
from sev_agent.host.examination import Readiness, Report, examine
from sev_agent.host.inquiry import gather
from sev_agent.host.layer import Layer
from sev_agent.hypervisor.host_files import HostFiles
from sev_agent.sev.generation import Generation
from tests.hosts import contents, unpack


def judge(root: Path) -> Report:
    return examine(asyncio.run(gather(HostFiles(root), None)))


def outcome(report: Report, name: str) -> Outcome:
    return next(result.outcome for result in report.results if result.check.name == name)


def without(host: str, *paths: str) -> dict[str, str]:
    return {name: text for name, text in contents(host).items() if not name.startswith(paths)}


def test_without_registers_the_kernels_flags_prove_the_bios(tmp_path: Path) -> None:
    """Modules cpuid and msr are seldom loaded: a host that works is found ready without them."""
    report = judge(unpack(without("third-generation", "dev/cpu"), tmp_path))
    assert report.is_ready(Generation.SEV)
    assert outcome(report, "bios.smee") is Outcome.PASSED
    assert outcome(report, "bios.asids_sev") is Outcome.UNKNOWN


def test_without_registers_and_flags_nothing_is_claimed(tmp_path: Path) -> None:
    """The flags' absence may be the processor's or the BIOS's doing: what to do first is to look."""
    files = without("third-generation", "dev/cpu")
    files["proc/cpuinfo"] = files["proc/cpuinfo"].replace("sme sev sev_es", "")
    files["sys/module/kvm_amd/parameters/sev"] = "N\n"
    report = judge(unpack(files, tmp_path))
    assert outcome(report, "cpu.sev") is Outcome.UNKNOWN
    assert outcome(report, "bios.smee") is Outcome.UNKNOWN
    verdict = report.verdicts[Generation.SEV]
    assert verdict.readiness is Readiness.NOT_READY
    assert verdict.mend is not None
    assert (verdict.mend.check.name, verdict.mend.finding.remedy) == (
        "cpu.sev",
        "modprobe cpuid, then run this again",
    )


def test_a_host_of_which_libvirt_was_not_captured_is_not_proven(tmp_path: Path) -> None:
    """Nothing failed, but what decides was not seen; the verdict names it."""
    report = judge(unpack(without("third-generation", "captured"), tmp_path))
    verdict = report.verdicts[Generation.SEV]
    assert verdict.readiness is Readiness.NOT_PROVEN
    assert verdict.mend is not None
    assert verdict.mend.check.layer is Layer.LIBVIRT
    assert "was not captured" in verdict.mend.finding.found


def test_an_empty_root_is_not_ready(tmp_path: Path) -> None:
    """Every check ends in a finding, whatever is missing."""
    report = judge(tmp_path)
    assert not report.is_ready()
    assert all(result.finding.found for result in report.results)


@pytest.mark.parametrize("error", [PermissionError(13, "denied", "/proc/x"), OSError(5, "EIO", "/proc/x")])
def test_what_cannot_be_read_is_a_finding(error: OSError, tmp_path: Path) -> None:
    """Missing permission says so, and is no fault of the host; a broken read is."""

    def look(_evidence: Evidence) -> Finding:
        raise error

    check = Check(name="a", title="A", layer=Layer.CPU, look=look)
    unasked = NotAsked(reason="")
    evidence = Evidence(files=HostFiles(tmp_path), libvirt=unasked, placement=unasked, rabbitmq=unasked)
    [result] = examine(evidence, [check]).results
    assert result.finding.source == "/proc/x"
    if isinstance(error, PermissionError):
        assert (result.outcome, result.finding.remedy) == (Outcome.UNKNOWN, "run this as root")
    else:
        assert result.outcome is Outcome.FAILED


def test_firmware_for_stateless_images_counts(tmp_path: Path) -> None:
    """Guests of SEV-ES can run, and it is told which images they need."""
    report = judge(unpack(without("third-generation", "usr/share/qemu/firmware/60-"), tmp_path))
    assert report.is_ready(Generation.SEV_ES)
    found = next(result.finding.found for result in report.results if result.check.name == "ovmf.sev_es")
    assert found == "/usr/share/OVMF/OVMF.amdsev.fd, for images with hw_firmware_stateless=true only"


def test_a_backported_feature_counts(tmp_path: Path) -> None:
    """Distributions put SEV-SNP into older kernels: the module that has the parameter knows it."""
    files = contents("fourth-generation")
    release = files["proc/sys/kernel/osrelease"].strip()
    files["proc/sys/kernel/osrelease"] = "5.14.0-570.el9.x86_64\n"
    files["boot/config-5.14.0-570.el9.x86_64"] = files.pop(f"boot/config-{release}")
    report = judge(unpack(files, tmp_path))
    assert outcome(report, "kernel.version_sev_snp") is Outcome.PASSED


def test_the_running_kernels_configuration_comes_first(tmp_path: Path) -> None:
    """A file of that name in /boot may be of another build."""
    import gzip  # noqa: PLC0415 - used by this test alone

    files = HostFiles(unpack(contents("third-generation"), tmp_path))
    (tmp_path / "proc/config.gz").write_bytes(gzip.compress(b"CONFIG_KVM_AMD=y\n# CONFIG_KVM_AMD_SEV is not set\n"))
    config = kernel.config(files)
    assert config is not None
    assert config.options == {"CONFIG_KVM_AMD": "y", "CONFIG_KVM_AMD_SEV": "n"}
    assert config.source.endswith("proc/config.gz")


@pytest.mark.parametrize("release", ["../../../etc/passwd", "", "kernel"])
def test_a_strange_release_leads_nowhere(release: str, tmp_path: Path) -> None:
    """It is never a path."""
    files = HostFiles(unpack({"proc/sys/kernel/osrelease": release}, tmp_path))
    assert kernel.version(files) is None
    assert kernel.config(files) is None
