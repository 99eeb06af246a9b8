"""NICs."""

import hashlib
from uuid import UUID

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


def derived_mac(uuid: UUID, index: int) -> str:
    """The address of the NIC at ``index`` of an instance that asks for none: always the same, under OpenStack's prefix.

    24 bits: two in 500 instances on one network meet with a chance of 1 %. Networks with more should name theirs.
    """
    digest = hashlib.sha256(uuid.bytes + index.to_bytes(2, "big")).digest()
    return "fa:16:3e:" + ":".join(f"{byte:02x}" for byte in digest[:3])
