"""The processor can encrypt guests: CPUID leaf 0x8000001F, one check for each generation."""

from functools import partial

from sev_agent.host import cpuinfo, registers
from sev_agent.host.check import ALL, SNP, Check, Finding, judged, unknown
from sev_agent.host.checks import cpu_bare_metal
from sev_agent.host.evidence import Evidence
from sev_agent.host.layer import Layer
from sev_agent.sev.generation import Generation

_BITS = {Generation.SEV: 1, Generation.SEV_ES: 3, Generation.SEV_SNP: 4}
_FLAGS = {Generation.SEV: "sev", Generation.SEV_ES: "sev_es", Generation.SEV_SNP: "sev_snp"}
_SINCE = {
    Generation.SEV: "the 1st generation of EPYC on",
    Generation.SEV_ES: "the 2nd generation of EPYC on",
    Generation.SEV_SNP: "the 3rd generation of EPYC on",
}
_LEAF = f"CPUID {registers.MEMORY_ENCRYPTION_LEAF:#x}"


def name(generation: Generation) -> str:
    return f"cpu.{_FLAGS[generation]}"


def look(generation: Generation, evidence: Evidence) -> Finding:
    expected = f"{_LEAF} EAX bit {_BITS[generation]}"
    remedy = f"use another host: processors have {generation.value} from {_SINCE[generation]}"
    try:
        leaf = registers.memory_encryption(evidence.files)
    except FileNotFoundError:
        return _by_flag(generation, evidence, expected)
    passed, found = (False, "no such leaf") if leaf is None else _has(generation, leaf)
    return judged(
        passed=passed,
        expected=expected,
        found=found,
        source=evidence.files.where(registers.CPUID),
        remedy=remedy,
    )


def _has(generation: Generation, leaf: registers.MemoryEncryption) -> tuple[bool, str]:
    bit = _BITS[generation]
    match generation:
        case Generation.SEV:
            is_set = leaf.sev
        case Generation.SEV_ES if leaf.sev_es and leaf.first_sev_asid == 0:
            # The 1st generation has the bit, and no way to set ASIDs aside.
            return False, f"bit {bit} is set, but EDX is 0: no ASID can be set aside for such guests"
        case Generation.SEV_ES:
            is_set = leaf.sev_es
        case Generation.SEV_SNP:
            is_set = leaf.sev_snp
    return is_set, f"bit {bit} is {'set' if is_set else 'clear'}"


def _by_flag(generation: Generation, evidence: Evidence, expected: str) -> Finding:
    """The kernel shows the flag only where BIOS and processor both have it, so its absence proves nothing."""
    flag = _FLAGS[generation]
    source = evidence.files.where(cpuinfo.PATH)
    if flag in cpuinfo.read(evidence.files).flags:
        return judged(passed=True, expected=expected, found=f"the kernel has flag {flag}", source=source, remedy="")
    return unknown(
        expected=expected,
        found=f"no flag {flag}, and the registers cannot be read",
        source=source,
        remedy="modprobe cpuid, then run this again",
    )


CHECKS = tuple(
    Check(
        name=name(generation),
        title=f"Processor has {generation.value}",
        layer=Layer.CPU,
        look=partial(look, generation),
        generations=generations,
        needs=(cpu_bare_metal.NAME,),
    )
    for generation, generations in (
        (Generation.SEV, ALL),
        (Generation.SEV_ES, frozenset({Generation.SEV_ES})),
        (Generation.SEV_SNP, SNP),
    )
)
