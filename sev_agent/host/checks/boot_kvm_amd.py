"""The boot line in effect lets KVM use each generation: ``kvm_amd.sev=1``, and nothing that switches one off.

The parameters are on by default since Linux 5.13; before, ``sev`` and ``sev_es`` had the value of
``CONFIG_AMD_MEM_ENCRYPT_ACTIVE_BY_DEFAULT``. Source: Linux, commit 6c2c7bf5803c.
"""

from functools import partial

from sev_agent.host import boot_line, kernel, modprobe
from sev_agent.host.check import NEEDED_FOR, Check, Finding, judged
from sev_agent.host.checks import kernel_active_by_default
from sev_agent.host.evidence import Evidence
from sev_agent.host.kvm_amd import IS_ON, PARAMETERS
from sev_agent.host.layer import Layer
from sev_agent.sev.generation import Generation

_ON_BY_DEFAULT_SINCE = (5, 13)


def name(generation: Generation) -> str:
    return f"boot.kvm_amd_{PARAMETERS[generation]}"


def look(generation: Generation, evidence: Evidence) -> Finding:
    parameter = PARAMETERS[generation]
    value = boot_line.in_effect(evidence.files).value(f"kvm_amd.{parameter}")
    if value is None:
        passed, found = _default(parameter, evidence)
    else:
        passed, found = value in IS_ON, f"kvm_amd.{parameter}={value}"
    return judged(
        passed=passed,
        expected=f"kvm_amd.{parameter}=1, or on by default",
        found=found,
        source=evidence.files.where(boot_line.IN_EFFECT),
        remedy=f"sev-agent prepare --generation {generation.value} --apply, then reboot",
    )


def _default(parameter: str, evidence: Evidence) -> tuple[bool, str]:
    if any(option.parameter == parameter and option.value in IS_ON for option in modprobe.kvm_amd(evidence.files)):
        return True, "absent, set in modprobe.d"
    version = kernel.version(evidence.files)
    if version is None or version >= _ON_BY_DEFAULT_SINCE:
        return True, "absent, and on by default"
    config = kernel.config(evidence.files)
    if config is None or config.value(kernel_active_by_default.OPTION) == "y":
        return True, "absent, and on by default in this build"
    return False, "absent, and off by default before Linux 5.13"


CHECKS = tuple(
    Check(
        name=name(generation),
        title=f"Boot line lets KVM use {generation.value}",
        layer=Layer.BOOT_LINE,
        look=partial(look, generation),
        generations=generations,
    )
    for generation, generations in NEEDED_FOR.items()
)
