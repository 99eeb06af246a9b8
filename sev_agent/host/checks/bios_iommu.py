"""The IOMMU is on: SEV-SNP does not start without it."""

from sev_agent.host.check import SNP, Check, Finding, judged
from sev_agent.host.checks import boot_iommu, cpu_bare_metal, kernel_options
from sev_agent.host.evidence import Evidence
from sev_agent.host.layer import Layer

NAME = "bios.iommu"

_GROUPS = "sys/kernel/iommu_groups"


def look(evidence: Evidence) -> Finding:
    count = len(evidence.files.names(_GROUPS))
    return judged(
        passed=count > 0,
        expected="IOMMU groups",
        found=f"{count} IOMMU groups",
        source=evidence.files.where(_GROUPS),
        remedy="BIOS: Advanced > AMD CBS > NBIO Common Options > IOMMU: Enabled",
    )


CHECKS = (
    Check(
        name=NAME,
        title="IOMMU enabled",
        layer=Layer.BIOS,
        look=look,
        generations=SNP,
        # Both would leave no groups behind, whatever the BIOS says.
        needs=(cpu_bare_metal.NAME, boot_iommu.NAME, kernel_options.name("CONFIG_AMD_IOMMU")),
    ),
)
