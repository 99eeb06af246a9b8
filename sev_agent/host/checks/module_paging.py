"""KVM's own demands: nested paging for all encrypted guests, caching of MMIO for SEV-ES and SEV-SNP.

Source: Linux, ``arch/x86/kvm/svm/sev.c``, sev_hardware_setup.
"""

from functools import partial

from sev_agent.host import kvm_amd
from sev_agent.host.check import ALL, ES_AND_SNP, Check, Finding, judged
from sev_agent.host.checks import module_loaded
from sev_agent.host.evidence import Evidence
from sev_agent.host.layer import Layer

NPT = "module.npt"
MMIO_CACHING = "module.mmio_caching"


def look(module: str, parameter: str, evidence: Evidence) -> Finding:
    path = f"sys/module/{module}/parameters/{parameter}"
    text = evidence.files.text_or_none(path)
    value = None if text is None else text.strip()
    return judged(
        passed=value is None or kvm_amd.is_on(value),
        expected=f"{module}.{parameter} on",
        found=value or "this kernel has no such parameter",
        source=evidence.files.where(path),
        remedy=f"take {module}.{parameter} from the boot line and from /etc/modprobe.d, then reboot",
    )


CHECKS = (
    Check(
        name=NPT,
        title="Nested paging on",
        layer=Layer.KERNEL_MODULE,
        look=partial(look, "kvm_amd", "npt"),
        generations=ALL,
        needs=(module_loaded.NAME,),
    ),
    Check(
        name=MMIO_CACHING,
        title="KVM caches MMIO",
        layer=Layer.KERNEL_MODULE,
        look=partial(look, "kvm", "mmio_caching"),
        generations=ES_AND_SNP,
        needs=(module_loaded.NAME,),
    ),
)
