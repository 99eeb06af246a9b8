"""Memory encryption of the host itself is on without asking, or asked for on the boot line.

``CONFIG_AMD_MEM_ENCRYPT_ACTIVE_BY_DEFAULT`` is gone since Linux 6.9 and from the stable series of that time (commit
29956748339a): a configuration that does not name it is of such a kernel, and there the boot line alone decides. SEV
guests run without it; it encrypts the rest of the host's memory.
"""

from sev_agent.host import boot_line, kernel
from sev_agent.host.check import ADVICE, Check, Finding, judged, skipped
from sev_agent.host.checks import kernel_options
from sev_agent.host.evidence import Evidence
from sev_agent.host.layer import Layer

OPTION = "CONFIG_AMD_MEM_ENCRYPT_ACTIVE_BY_DEFAULT"


def look(evidence: Evidence) -> Finding:
    expected = f"{OPTION}=y, or mem_encrypt=on on the boot line"
    config = kernel.config(evidence.files)
    if config is None:
        return skipped(expected=expected, found="the kernel's configuration is not there")
    value = config.value(OPTION)
    if value is None:
        found = "this kernel has no such option: the boot line decides"
        return judged(passed=True, expected=expected, found=found, source=config.source, remedy="")
    asked = boot_line.in_effect(evidence.files).value("mem_encrypt")
    return judged(
        passed=value == "y" or asked == "on",
        expected=expected,
        found=f"{OPTION}={value}, mem_encrypt={asked or '(absent)'}",
        source=f"{config.source}, {evidence.files.where(boot_line.IN_EFFECT)}",
        remedy="sev-agent prepare --apply puts mem_encrypt=on on the boot line",
    )


CHECKS = (
    Check(
        name="kernel.active_by_default",
        title="Memory encryption active by default",
        layer=Layer.KERNEL_BUILD,
        look=look,
        generations=ADVICE,
        needs=(kernel_options.name("CONFIG_AMD_MEM_ENCRYPT"),),
    ),
)
