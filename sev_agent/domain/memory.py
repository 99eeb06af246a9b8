"""Guest memory."""

from sev_agent.domain.element import Element, add
from sev_agent.domain.spec import DomainSpec


def configure(spec: DomainSpec, domain: Element) -> None:
    """SEV and SEV-ES pages cannot move, so QEMU locks them; ``<locked/>`` makes libvirt raise its limit for that."""
    add(domain, "memory", str(spec.memory_mb), unit="MiB")
    add(domain, "currentMemory", str(spec.memory_mb), unit="MiB")
    add(add(domain, "memoryBacking"), "locked")
