"""Captured hosts, each judged as ``sev-agent check --root`` judges it."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from sev_agent.host.check import Outcome
from sev_agent.host.checks import ALL_CHECKS
from sev_agent.host.examination import Readiness, Report, examine
from sev_agent.host.inquiry import gather
from sev_agent.host.layer import Layer
from sev_agent.hypervisor.host_files import HostFiles
from sev_agent.sev.generation import Generation
from tests.hosts import contents, faults, unpack, with_fault

SEV, ES, SNP = Generation
READY, NOT_READY = Readiness.READY, Readiness.NOT_READY

NOT_IN_A_CAPTURE = {"placement.reachable", "rabbitmq.reachable"}
"""These ask services."""

WHOLE_HOSTS = {"cpu.vendor", "cpu.bare_metal", "cpu.sev_snp", "bios.rmp", "module.es_beside_snp"}
"""What they find is how whole hosts are."""


def judge(root: Path) -> Report:
    return examine(asyncio.run(gather(HostFiles(root), None)))


@pytest.mark.parametrize(
    ("host", "verdicts"),
    [
        ("first-generation", {SEV: READY, ES: "cpu.sev_es", SNP: "cpu.sev_snp"}),
        ("second-generation", {SEV: READY, ES: READY, SNP: "cpu.sev_snp"}),
        ("third-generation", {SEV: READY, ES: READY, SNP: "bios.rmp"}),
        ("fourth-generation", {SEV: READY, ES: "module.es_beside_snp", SNP: READY}),
        ("intel", {SEV: "cpu.vendor", ES: "cpu.vendor", SNP: "cpu.vendor"}),
        ("virtual-machine", {SEV: "cpu.bare_metal", ES: "cpu.bare_metal", SNP: "cpu.bare_metal"}),
    ],
)
def test_verdicts(host: str, verdicts: dict[Generation, str | Readiness], tmp_path: Path) -> None:
    """Each host is ready for what it can run, and the one check to mend first is named for what it cannot."""
    report = judge(unpack(contents(host), tmp_path))

    found = {
        generation: verdict.mend.check.name if verdict.mend else verdict.readiness
        for generation, verdict in report.verdicts.items()
    }
    assert found == verdicts
    assert report.advice == ()


@pytest.mark.parametrize("fault", faults(), ids=lambda fault: str(fault["name"]))
def test_faults(fault: dict[str, Any], tmp_path: Path) -> None:
    """A single fault is found by the one check that is about it, in the layer where it is mended."""
    root = unpack(with_fault(fault), tmp_path)
    for path, mode in fault.get("modes", {}).items():
        (root / path).chmod(int(mode, 8))
    report = judge(root)

    generation = Generation(fault["generation"])
    if fault.get("advice"):
        assert report.is_ready(generation)
        told = [(result.check.name, result.check.layer) for result in report.advice]
        assert (fault["check"], Layer(fault["layer"])) in told
    else:
        mend = report.first_to_mend(generation)
        assert mend is not None
        assert (mend.check.name, mend.check.layer) == (fault["check"], Layer(fault["layer"]))
        assert mend.outcome is Outcome.FAILED
        assert mend.finding.remedy
    assert_dependents_are_skipped(report)


def assert_dependents_are_skipped(report: Report) -> None:
    """No check fails only because one that it needs did: it is skipped, and names it."""
    found = {result.check.name: result.outcome for result in report.results}
    for result in report.results:
        stopped = [name for name in result.check.needs if found[name] in {Outcome.FAILED, Outcome.SKIPPED}]
        if stopped:
            assert result.outcome is Outcome.SKIPPED
            assert result.finding.found.startswith(f"needs {stopped[0]}, which ")


def test_every_check_has_a_fault() -> None:
    """There is a captured host for each check that can fail below a root."""
    covered = {fault["check"] for fault in faults()} | WHOLE_HOSTS | NOT_IN_A_CAPTURE
    assert {check.name for check in ALL_CHECKS} - covered == set()


def test_every_check_names_checks_that_there_are() -> None:
    """What a check needs exists, and nothing needs itself in the end."""
    needs = {check.name: set(check.needs) for check in ALL_CHECKS}
    assert len(needs) == len(ALL_CHECKS)
    assert set().union(*needs.values()) <= set(needs)
    while needs:
        leaves = {name for name, needed in needs.items() if not needed & set(needs)}
        assert leaves
        needs = {name: needed for name, needed in needs.items() if name not in leaves}
