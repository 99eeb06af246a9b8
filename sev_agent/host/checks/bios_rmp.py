"""The BIOS reserves memory for the reverse map table (RMP), which SEV-SNP needs.

MSRs 0xC0010132 (RMP_BASE) and 0xC0010133 (RMP_END). Source: AMD64 APM, volume 2, section 15.36.4.
"""

from sev_agent.host import cpuinfo, registers
from sev_agent.host.check import SNP, Check, Finding, judged, unknown
from sev_agent.host.checks import bios_smee, cpu_features
from sev_agent.host.evidence import Evidence
from sev_agent.host.layer import Layer
from sev_agent.sev.generation import Generation

NAME = "bios.rmp"

_ADDRESS = ~0x1FFF
_EXPECTED = "RMP_BASE and RMP_END not zero"


def look(evidence: Evidence) -> Finding:
    files = evidence.files
    try:
        base, end = (registers.model_register(files, number) for number in (registers.RMP_BASE, registers.RMP_END))
    except FileNotFoundError:
        base = end = None
    if base is None or end is None:
        return _by_flag(evidence)
    return judged(
        passed=bool(base & _ADDRESS) and bool(end & _ADDRESS),
        expected=_EXPECTED,
        found=f"RMP_BASE {base:#x}, RMP_END {end:#x}",
        source=files.where(registers.MSR),
        remedy="BIOS: Advanced > AMD CBS > CPU Common Options > SNP Memory (RMP Table) Coverage: Enabled, and "
        "AMD CBS > NBIO Common Options > SEV-SNP Support: Enabled",
    )


def _by_flag(evidence: Evidence) -> Finding:
    source = evidence.files.where(cpuinfo.PATH)
    if "sev_snp" in cpuinfo.read(evidence.files).flags:
        found = "the kernel has flag sev_snp, which it drops without an RMP"
        return judged(passed=True, expected=_EXPECTED, found=found, source=source, remedy="")
    remedy = "modprobe msr, then run this again"
    return unknown(expected=_EXPECTED, found="the registers cannot be read", source=source, remedy=remedy)


CHECKS = (
    Check(
        name=NAME,
        title="Memory reserved for the RMP",
        layer=Layer.BIOS,
        look=look,
        generations=SNP,
        needs=(cpu_features.name(Generation.SEV_SNP), bios_smee.SMEE),
    ),
)
