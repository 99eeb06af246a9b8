"""Virtual processors."""

from sev_agent.domain.element import Element, add
from sev_agent.domain.spec import DomainSpec, VirtType


def configure_count(spec: DomainSpec, domain: Element) -> None:
    add(domain, "vcpu", str(spec.vcpus), placement="static")


def configure_model(spec: DomainSpec, domain: Element) -> None:
    """The host's own processor model: an encrypted guest cannot migrate, so it needs no lesser one."""
    match spec.virt_type:
        case VirtType.KVM:
            add(domain, "cpu", mode="host-passthrough", check="none")
        case VirtType.QEMU:
            add(domain, "cpu", mode="maximum", check="none")
