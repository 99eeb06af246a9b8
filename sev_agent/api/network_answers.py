"""What the operations on networks answer."""

from sev_agent.api.answer_parts import Part, Uuid


class OfferedNetwork(Part):
    id: Uuid
    label: str


class OfferedNetworks(Part):
    networks: list[OfferedNetwork]


class OneOfferedNetwork(Part):
    network: OfferedNetwork


class TenantNetwork(OfferedNetwork):
    cidr: str


class TenantNetworks(Part):
    networks: list[TenantNetwork]


class OneTenantNetwork(Part):
    network: TenantNetwork
