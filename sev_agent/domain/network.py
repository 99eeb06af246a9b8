"""NICs."""

from sev_agent.domain.element import Element, add
from sev_agent.domain.spec import DomainSpec, Nic
from sev_agent.domain.virtio import add_iommu
from sev_agent.schema import NetworkKind


def configure(spec: DomainSpec, devices: Element) -> None:
    for nic in spec.nics:
        _nic(nic, devices)


def _nic(nic: Nic, devices: Element) -> None:
    interface = add(devices, "interface", type=nic.kind.value)
    add(interface, "mac", address=nic.mac)
    if nic.source is not None:
        match nic.kind:
            case NetworkKind.BRIDGE:
                add(interface, "source", bridge=nic.source)
            case NetworkKind.NETWORK:
                add(interface, "source", network=nic.source)
            case NetworkKind.USER | NetworkKind.NONE:
                pass
    add(interface, "model", type="virtio")
    add_iommu(interface)
    # Firmware under SEV cannot run a PXE ROM that it reads from the unencrypted device.
    add(interface, "rom", enabled="no")
