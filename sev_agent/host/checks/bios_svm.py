"""Virtualization is switched on in the BIOS."""

from sev_agent.host import cpuinfo
from sev_agent.host.check import Check, Finding, judged
from sev_agent.host.checks import cpu_bare_metal
from sev_agent.host.evidence import Evidence
from sev_agent.host.layer import Layer

NAME = "bios.svm"


def look(evidence: Evidence) -> Finding:
    has = "svm" in cpuinfo.read(evidence.files).flags
    return judged(
        passed=has,
        expected="flag svm",
        found="flag svm" if has else "no flag svm",
        source=evidence.files.where(cpuinfo.PATH),
        remedy="BIOS: Advanced > CPU Configuration > SVM Mode (AMD-V): Enabled",
    )


CHECKS = (
    Check(name=NAME, title="Virtualization (SVM) enabled", layer=Layer.BIOS, look=look, needs=(cpu_bare_metal.NAME,)),
)
