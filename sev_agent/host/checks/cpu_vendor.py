"""The processor is AMD's, and of a line that has memory encryption."""

from sev_agent.host import cpuinfo
from sev_agent.host.check import Check, Finding, judged
from sev_agent.host.evidence import Evidence
from sev_agent.host.layer import Layer

NAME = "cpu.vendor"

_AMD = "AuthenticAMD"
_EPYC = {
    (0x17, 0x0): "1st generation EPYC (Naples)",
    (0x17, 0x3): "2nd generation EPYC (Rome)",
    (0x19, 0x0): "3rd generation EPYC (Milan)",
    (0x19, 0x1): "4th generation EPYC (Genoa)",
    (0x19, 0xA): "4th generation EPYC (Bergamo, Siena)",
    (0x1A, 0x0): "5th generation EPYC (Turin)",
    (0x1A, 0x1): "5th generation EPYC (Turin Dense)",
}
"""By family and the model's upper half. Source: AMD's processor programming references."""


def epyc_generation(family: int, model: int) -> str | None:
    """The name of a server processor; None for another, or one that is newer than this list."""
    return _EPYC.get((family, model >> 4))


def look(evidence: Evidence) -> Finding:
    processor = cpuinfo.read(evidence.files)
    line = epyc_generation(processor.family, processor.model)
    is_amd = processor.vendor == _AMD
    kind = line or (f"family {processor.family:#x}, model {processor.model:#x}, no EPYC of the 1st to 5th generation")
    return judged(
        passed=is_amd,
        expected=f"vendor {_AMD}",
        found=f"vendor {processor.vendor or 'unknown'}, {processor.name or 'no name'}"
        + (f": {kind}" if is_amd else ""),
        source=evidence.files.where(cpuinfo.PATH),
        remedy="use a host with an AMD EPYC processor: no other vendor has SEV",
    )


CHECKS = (Check(name=NAME, title="Vendor and model", layer=Layer.CPU, look=look),)
