"""Guest memory."""

from sev_agent.domain.element import Element, add
from sev_agent.domain.spec import DomainSpec
from sev_agent.sev.generation import Generation


def configure(spec: DomainSpec, domain: Element) -> None:
    """SEV and SEV-ES pages cannot move, so QEMU locks them; ``<locked/>`` makes libvirt raise its limit for that.

    SEV-SNP's private pages are the kernel's own, which are never swapped. A hard limit is the most that QEMU may take,
    and libvirt also makes it the limit of locked memory (libvirt's page on domains, "Memory Tuning").
    """
    add(domain, "memory", str(spec.memory_mb), unit="MiB")
    add(domain, "currentMemory", str(spec.memory_mb), unit="MiB")
    if spec.memory_limit_mb is not None:
        add(add(domain, "memtune"), "hard_limit", str(spec.memory_limit_mb), unit="MiB")
    if spec.launch_security.generation is not Generation.SEV_SNP:
        add(add(domain, "memoryBacking"), "locked")
