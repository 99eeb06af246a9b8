"""``mem_encrypt=on`` on the boot line in effect.

The method sets it; it encrypts the memory of the host itself. KVM starts encrypted guests without it.
"""

from sev_agent.host import boot_line, kernel
from sev_agent.host.check import ADVICE, Check, Finding, judged
from sev_agent.host.checks import cpu_bare_metal, kernel_active_by_default
from sev_agent.host.evidence import Evidence
from sev_agent.host.layer import Layer

NAME = "boot.mem_encrypt"


def look(evidence: Evidence) -> Finding:
    value = boot_line.in_effect(evidence.files).value("mem_encrypt")
    config = kernel.config(evidence.files)
    by_default = value is None and config is not None and config.value(kernel_active_by_default.OPTION) == "y"
    return judged(
        passed=value == "on" or by_default,
        expected="mem_encrypt=on",
        found="absent, but on by default" if by_default else f"mem_encrypt={value}" if value else "absent",
        source=evidence.files.where(boot_line.IN_EFFECT),
        remedy="sev-agent prepare --apply, then reboot: the host's own memory is not encrypted",
    )


CHECKS = (
    Check(
        name=NAME,
        title="mem_encrypt=on in effect",
        layer=Layer.BOOT_LINE,
        look=look,
        generations=ADVICE,
        needs=(cpu_bare_metal.NAME,),
    ),
)
