"""The lab's simulated platforms, as the checks see them."""

import asyncio
from pathlib import Path

import pytest

from sev_agent.host.examination import Readiness, examine
from sev_agent.host.inquiry import gather
from sev_agent.hypervisor.host_files import HostFiles
from sev_agent.lab.platform.emulator.kind import Kind
from sev_agent.lab.platform.simulated_root import write_platform_root
from sev_agent.sev.generation import Generation
from tests.hosts import contents, unpack

SEV, ES, SNP = Generation
READY = Readiness.READY
WITHOUT_A_ROOT = ("captured/", "usr/share/")
"""What a lab's host shares with the machine: libvirt's answers, and firmware."""


@pytest.mark.parametrize(
    ("kind", "verdicts"),
    [
        (Kind.NONE, {SEV: "cpu.vendor", ES: "cpu.vendor", SNP: "cpu.vendor"}),
        (Kind.SEV, {SEV: READY, ES: "cpu.sev_es", SNP: "cpu.sev_snp"}),
        (Kind.SEV_ES, {SEV: READY, ES: READY, SNP: "cpu.sev_snp"}),
        (Kind.SEV_SNP, {SEV: READY, ES: "module.es_beside_snp", SNP: READY}),
    ],
)
def test_each_kind_is_ready_for_what_it_simulates(
    kind: Kind, verdicts: dict[Generation, str | Readiness], tmp_path: Path
) -> None:
    """Every file that a check reads is there, and says what the kind is."""
    shared = {path: text for path, text in contents("fourth-generation").items() if path.startswith(WITHOUT_A_ROOT)}
    unpack(shared, tmp_path)
    write_platform_root(tmp_path, kind)
    write_platform_root(tmp_path, kind)  # as a lab that is brought up again does

    report = examine(asyncio.run(gather(HostFiles(tmp_path), None)))

    assert report.simulated
    found = {
        g: verdict.mend.check.name if verdict.mend else verdict.readiness for g, verdict in report.verdicts.items()
    }
    assert found == verdicts
