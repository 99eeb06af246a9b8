"""The kernel enabled SEV-SNP on the processors when it booted: MSR 0xC0010010 (SYSCFG) bit 24."""

from sev_agent.host import cpuinfo, kvm_amd, registers
from sev_agent.host.check import SNP, Check, Finding, judged, unknown
from sev_agent.host.checks import bios_iommu, bios_rmp, boot_iommu, kernel_options, kernel_version
from sev_agent.host.evidence import Evidence
from sev_agent.host.layer import Layer
from sev_agent.sev.generation import Generation

NAME = "module.snp_enabled"

_SNP_BIT = 24


def look(evidence: Evidence) -> Finding:
    expected = f"MSR {registers.SYSCFG:#x} (SYSCFG) bit {_SNP_BIT} set"
    try:
        value = registers.model_register(evidence.files, registers.SYSCFG)
    except FileNotFoundError:
        value = None
    if value is None:
        return _by_parameter(evidence, expected)
    is_set = bool(value >> _SNP_BIT & 1)
    return judged(
        passed=is_set,
        expected=expected,
        found=f"{value:#x}: bit {_SNP_BIT} is {'set' if is_set else 'clear'}",
        source=evidence.files.where(registers.MSR),
        remedy="the kernel could not enable SEV-SNP: 'dmesg | grep -i -e snp -e rmp' says why; update BIOS and kernel",
    )


def _by_parameter(evidence: Evidence, expected: str) -> Finding:
    if kvm_amd.is_on(kvm_amd.parameter(evidence.files, "sev_snp")):
        source = evidence.files.where(f"{kvm_amd.MODULE}/parameters/sev_snp")
        return judged(passed=True, expected=expected, found="kvm_amd says so", source=source, remedy="")
    return unknown(
        expected=expected,
        found="the register cannot be read",
        source=evidence.files.where(cpuinfo.PATH),
        remedy="modprobe msr, then run this again",
    )


CHECKS = (
    Check(
        name=NAME,
        title="SEV-SNP enabled by the kernel",
        layer=Layer.KERNEL_MODULE,
        look=look,
        generations=SNP,
        needs=(
            bios_rmp.NAME,
            bios_iommu.NAME,
            boot_iommu.NAME,
            kernel_version.name(Generation.SEV_SNP),
            kernel_options.name("CONFIG_KVM_AMD_SEV"),
        ),
    ),
)
