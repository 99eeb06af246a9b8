"""Nothing on the boot line takes from SEV-SNP the IOMMU that it needs.

Linux does not enable SEV-SNP where the IOMMU is off or its default domain is passthrough (``iommu=pt``).
Source: Linux, ``drivers/iommu/amd/init.c``, iommu_snp_enable.
"""

from sev_agent.host import boot_line
from sev_agent.host.check import SNP, Check, Finding, judged
from sev_agent.host.evidence import Evidence
from sev_agent.host.layer import Layer

NAME = "boot.iommu"


def obstacles(line: boot_line.BootLine) -> list[str]:
    """The words that keep SEV-SNP from starting."""
    found = []
    settings = (line.value("iommu") or "").split(",")
    if "pt" in settings or line.value("iommu.passthrough") in {"1", "y", "on"}:
        found.append("iommu=pt" if "pt" in settings else "iommu.passthrough=1")
    if "off" in settings:
        found.append("iommu=off")
    if "off" in (line.value("amd_iommu") or "").split(","):
        found.append("amd_iommu=off")
    return found


def look(evidence: Evidence) -> Finding:
    found = obstacles(boot_line.in_effect(evidence.files))
    return judged(
        passed=not found,
        expected="no iommu=pt, iommu=off or amd_iommu=off",
        found=", ".join(found) or "none of them",
        source=evidence.files.where(boot_line.IN_EFFECT),
        remedy=f"take {', '.join(found)} from the boot line (/etc/default/grub), update the boot loader, and reboot",
    )


CHECKS = (Check(name=NAME, title="IOMMU not bypassed", layer=Layer.BOOT_LINE, look=look, generations=SNP),)
