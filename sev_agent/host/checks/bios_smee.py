"""Secure memory encryption is enabled (SMEE), and system management mode is locked, both by the BIOS.

Without either, the kernel takes the flags ``sev``, ``sev_es`` and ``sev_snp`` away. Source: AMD64 Architecture
Programmer's Manual, volume 2, section 7.10; Linux, ``arch/x86/kernel/cpu/amd.c``, early_detect_mem_encrypt.
"""

from functools import partial

from sev_agent.host import cpuinfo, registers
from sev_agent.host.check import Check, Finding, judged, unknown
from sev_agent.host.checks import cpu_features
from sev_agent.host.evidence import Evidence
from sev_agent.host.layer import Layer
from sev_agent.sev.generation import Generation

SMEE = "bios.smee"
SMM_LOCK = "bios.smm_lock"

_SMEE_BIT = 23
_SMM_LOCK_BIT = 0


def look(register: int, bit: int, register_name: str, remedy: str, evidence: Evidence) -> Finding:
    expected = f"MSR {register:#x} ({register_name}) bit {bit} set"
    try:
        value = registers.model_register(evidence.files, register)
    except FileNotFoundError:
        value = None
    if value is None:
        return _by_flag(evidence, expected)
    is_set = bool(value >> bit & 1)
    return judged(
        passed=is_set,
        expected=expected,
        found=f"{value:#x}: bit {bit} is {'set' if is_set else 'clear'}",
        source=evidence.files.where(registers.MSR),
        remedy=remedy,
    )


def _by_flag(evidence: Evidence, expected: str) -> Finding:
    source = evidence.files.where(cpuinfo.PATH)
    if "sev" in cpuinfo.read(evidence.files).flags:
        found = "the kernel has flag sev, which it drops where this is not set"
        return judged(passed=True, expected=expected, found=found, source=source, remedy="")
    return unknown(
        expected=expected,
        found="no flag sev, and the register cannot be read",
        source=source,
        remedy="modprobe msr, then run this again",
    )


CHECKS = (
    Check(
        name=SMEE,
        title="Memory encryption (SMEE) enabled",
        layer=Layer.BIOS,
        look=partial(
            look,
            registers.SYSCFG,
            _SMEE_BIT,
            "SYSCFG",
            "BIOS: Advanced > AMD CBS > CPU Common Options > SMEE: Enabled (in some: SME, or Secure Memory Encryption)",
        ),
        needs=(cpu_features.name(Generation.SEV),),
    ),
    Check(
        name=SMM_LOCK,
        title="System management mode locked",
        layer=Layer.BIOS,
        look=partial(
            look,
            registers.HWCR,
            _SMM_LOCK_BIT,
            "HWCR",
            "BIOS: Advanced > AMD CBS > CPU Common Options > SMM Lock: Enabled; where there is no such item, update it",
        ),
        needs=(cpu_features.name(Generation.SEV),),
    ),
)
