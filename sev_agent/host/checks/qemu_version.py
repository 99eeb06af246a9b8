"""QEMU is new enough for each generation: SEV in 2.12, SEV-ES in 6.0, SEV-SNP in 9.1.

Nova asks for 8.0 for SEV-ES; so does this, which offers the same guests.
"""

from functools import partial

from sev_agent.host.answers import LibvirtAnswer
from sev_agent.host.check import Check, Finding, judged, skipped
from sev_agent.host.checks import libvirt_answers
from sev_agent.host.evidence import Evidence
from sev_agent.host.layer import Layer
from sev_agent.host.versions import parse
from sev_agent.sev.generation import Generation

_LEAST = {Generation.SEV: "2.12.0", Generation.SEV_ES: "8.0.0", Generation.SEV_SNP: "9.1.0"}


def name(generation: Generation) -> str:
    return f"qemu.version_{generation.name.lower()}"


def look(generation: Generation, evidence: Evidence) -> Finding:
    least = _LEAST[generation]
    expected = f"QEMU {least} or newer"
    if not isinstance(evidence.libvirt, LibvirtAnswer):
        return skipped(expected=expected, found="libvirt did not answer")
    version = evidence.libvirt.qemu_version
    return judged(
        passed=parse(version) >= parse(least),
        expected=expected,
        found=version,
        source=evidence.libvirt.source,
        remedy=f"install QEMU {least} or newer (Debian 12: from backports)",
    )


CHECKS = tuple(
    Check(
        name=name(generation),
        title=f"QEMU new enough for {generation.value}",
        layer=Layer.QEMU,
        look=partial(look, generation),
        generations=frozenset({generation}),
        needs=(libvirt_answers.REACHABLE,),
    )
    for generation in Generation
)
