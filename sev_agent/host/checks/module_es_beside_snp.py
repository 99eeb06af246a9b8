"""SEV-ES is not offered where SEV-SNP is on.

Firmware that mends CVE-2025-48514 refuses SEV-ES guests while SEV-SNP is initialised. Source: AMD-SB-3023, footnote 2.
"""

from sev_agent.host import kvm_amd
from sev_agent.host.check import Check, Finding, judged
from sev_agent.host.checks import module_parameters
from sev_agent.host.evidence import Evidence
from sev_agent.host.layer import Layer
from sev_agent.sev.generation import Generation

NAME = "module.es_beside_snp"


def look(evidence: Evidence) -> Finding:
    snp = kvm_amd.is_on(kvm_amd.parameter(evidence.files, "sev_snp"))
    return judged(
        passed=not snp,
        expected="SEV-SNP off",
        found="SEV-SNP is on: firmware with the mend for CVE-2025-48514 refuses SEV-ES guests" if snp else "off",
        source=evidence.files.where(f"{kvm_amd.MODULE}/parameters/sev_snp"),
        remedy="run amd-sev-snp guests here, or give SEV-SNP up with kvm_amd.sev_snp=0 on the boot line",
    )


CHECKS = (
    Check(
        name=NAME,
        title="SEV-ES not shut out by SEV-SNP",
        layer=Layer.KERNEL_MODULE,
        look=look,
        generations=frozenset({Generation.SEV_ES}),
        needs=(module_parameters.name(Generation.SEV_ES),),
    ),
)
