"""The BIOS leaves address space numbers (ASIDs) for guests of each pool.

One number is one guest. CPUID 0x8000001F ECX is the last number, EDX the lowest that plain SEV may use; the numbers
below it are for SEV-ES and SEV-SNP. EDX = 1, a common setting, leaves these none. Source: AMD64 APM, volume 3, E.4.17.
"""

from functools import partial

from sev_agent.host import registers
from sev_agent.host.check import ES_AND_SNP, Check, Finding, judged, unknown
from sev_agent.host.checks import cpu_features
from sev_agent.host.evidence import Evidence
from sev_agent.host.layer import Layer
from sev_agent.sev.generation import Generation

_MENU = "BIOS: Advanced > AMD CBS > CPU Common Options > SEV ASID Space Limit Control: Manual, SEV ASID Space Limit"
_REMEDIES = {
    Generation.SEV: f"{_MENU} (Minimum SEV non-ES ASID): lower than the number of all ASIDs",
    Generation.SEV_ES: f"{_MENU} (Minimum SEV non-ES ASID): one more than SEV-ES and SEV-SNP guests are wanted",
}
_POOLS = {Generation.SEV: "amd-sev", Generation.SEV_ES: "amd-sev-es and amd-sev-snp"}


def name(pool: Generation) -> str:
    return "bios.asids_sev" if pool is Generation.SEV else "bios.asids_sev_es"


def look(pool: Generation, evidence: Evidence) -> Finding:
    expected = f"at least one ASID for {_POOLS[pool]}"
    source = evidence.files.where(registers.CPUID)
    try:
        leaf = registers.memory_encryption(evidence.files)
    except FileNotFoundError:
        leaf = None
    if leaf is None:
        found = "the register cannot be read"
        return unknown(expected=expected, found=found, source=source, remedy="modprobe cpuid, then run this again")
    count = leaf.sev_slots if pool is Generation.SEV else leaf.es_slots
    return judged(
        passed=count > 0,
        expected=expected,
        found=f"{count}: ECX {leaf.last_asid}, EDX {leaf.first_sev_asid}",
        source=f"{source}, CPUID {registers.MEMORY_ENCRYPTION_LEAF:#x}",
        remedy=_REMEDIES[pool],
    )


CHECKS = (
    Check(
        name=name(Generation.SEV),
        title="ASIDs for SEV guests",
        layer=Layer.BIOS,
        look=partial(look, Generation.SEV),
        generations=frozenset({Generation.SEV}),
        needs=(cpu_features.name(Generation.SEV),),
    ),
    Check(
        name=name(Generation.SEV_ES),
        title="ASIDs for SEV-ES and SEV-SNP guests",
        layer=Layer.BIOS,
        look=partial(look, Generation.SEV_ES),
        generations=ES_AND_SNP,
        needs=(cpu_features.name(Generation.SEV_ES),),
    ),
)
