"""KVM offers each generation: the parameters of kvm_amd, after it has looked at all that it needs."""

from functools import partial

from sev_agent.host import kvm_amd
from sev_agent.host.check import NEEDED_FOR, Check, Finding, judged
from sev_agent.host.checks import (
    bios_asids,
    bios_smee,
    boot_kvm_amd,
    cpu_features,
    kernel_options,
    kernel_version,
    module_loaded,
    module_options,
    module_paging,
    module_snp_enabled,
)
from sev_agent.host.evidence import Evidence
from sev_agent.host.layer import Layer
from sev_agent.sev.generation import Generation


def name(generation: Generation) -> str:
    return f"module.{kvm_amd.PARAMETERS[generation]}"


def look(generation: Generation, evidence: Evidence) -> Finding:
    parameter = kvm_amd.PARAMETERS[generation]
    value = kvm_amd.parameter(evidence.files, parameter)
    return judged(
        passed=kvm_amd.is_on(value),
        expected="1 or Y",
        found=value if value is not None else "this kernel has no such parameter",
        source=evidence.files.where(f"{kvm_amd.MODULE}/parameters/{parameter}"),
        remedy="all that it needs was found in order, so it was loaded before that: without guests, "
        "'modprobe -r kvm_amd && modprobe kvm_amd', or reboot; 'dmesg | grep -i -e ccp -e sev' says what it met",
    )


def _needs(generation: Generation) -> tuple[str, ...]:
    shared = (
        *(cpu_features.name(generation), boot_kvm_amd.name(generation), module_options.name(generation)),
        kernel_version.name(generation),
    )
    match generation:
        case Generation.SEV:
            return (
                *shared,
                *(bios_smee.SMEE, bios_smee.SMM_LOCK),
                *kernel_options.NAMES,
                *(module_loaded.NAME, module_paging.NPT),
            )
        case Generation.SEV_ES:
            return (*shared, name(Generation.SEV), bios_asids.name(Generation.SEV_ES), module_paging.MMIO_CACHING)
        case Generation.SEV_SNP:
            return (*shared, name(Generation.SEV_ES), module_snp_enabled.NAME)


CHECKS = tuple(
    Check(
        name=name(generation),
        title=f"KVM offers {generation.value}",
        layer=Layer.KERNEL_MODULE,
        look=partial(look, generation),
        generations=generations,
        needs=_needs(generation),
        decisive=True,
    )
    for generation, generations in NEEDED_FOR.items()
)
