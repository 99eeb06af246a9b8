"""The routes of networks and addresses, as the compute API has them where there is no Neutron."""

from collections.abc import Iterable
from typing import Any, NoReturn

from sev_agent.api.addresses import by_label
from sev_agent.api.faults import ItemNotFound
from sev_agent.api.microversion import Microversion
from sev_agent.api.routes import Call, Route
from sev_agent.api.servers import Servers
from sev_agent.config import NetworksSection

_LAST_WITH_NETWORKS = Microversion(2, 35)


class NetworkRoutes:
    """``settings`` say which networks there are."""

    def __init__(self, servers: Servers, settings: NetworksSection) -> None:
        self._servers = servers
        self._offered = {
            uuid: what.partition(":")[2] for uuid, what in (entry.split("=", 1) for entry in settings.offered)
        }
        self._cidrs = {pool.network: str(pool.cidr) for pool in settings.pools}

    def routes(self) -> Iterable[Route]:
        old, addresses = _LAST_WITH_NETWORKS, "/servers/{server_id}/ips"
        named, tenant = "/os-networks", "/os-tenant-networks"
        return (
            Route("GET", named, "listNetworks", self._list, until=old),
            Route("GET", f"{named}/{{network_id}}", "showNetwork", self._show, until=old),
            Route("GET", tenant, "listTenantNetworks", self._list_of_tenant, until=old),
            Route("GET", f"{tenant}/{{network_id}}", "showTenantNetwork", self._show_of_tenant, until=old),
            Route("GET", addresses, "listAddresses", self._addresses),
            Route("GET", f"{addresses}/{{label}}", "listAddressesOfNetwork", self._addresses_of_network),
            Route("GET", "/servers/{server_id}/os-interface", "listInterfaces", self._interfaces),
            # It never succeeds, and so the document tells of none but faults.
            Route("GET", "/os-floating-ip-pools", "listFloatingIpPools", self._floating_ip_pools, status=404),
        )

    async def _list(self, call: Call) -> dict[str, Any]:
        """List the networks that a server can be connected to; clients ask here where there is no Neutron."""
        del call
        return {"networks": [_network(uuid, label) for uuid, label in self._offered.items()]}

    async def _show(self, call: Call) -> dict[str, Any]:
        """Show a network that a server can be connected to."""
        return {"network": _network(*self._find(call))}

    async def _list_of_tenant(self, call: Call) -> dict[str, Any]:
        """List the networks that a server can be connected to, as Terraform's provider asks for them."""
        del call
        return {"networks": [self._of_tenant(uuid, label) for uuid, label in self._offered.items()]}

    async def _show_of_tenant(self, call: Call) -> dict[str, Any]:
        """Show a network that a server can be connected to, as Terraform's provider asks for it."""
        return {"network": self._of_tenant(*self._find(call))}

    async def _addresses(self, call: Call) -> dict[str, Any]:
        """List a server's addresses."""
        row = await self._servers.get(call.caller, call.parameters["server_id"])
        return {"addresses": {label: _plain(found) for label, found in by_label(row.nics).items()}}

    async def _addresses_of_network(self, call: Call) -> dict[str, Any]:
        """List a server's addresses on one network."""
        row = await self._servers.get(call.caller, call.parameters["server_id"])
        label = call.parameters["label"]
        found = by_label(row.nics).get(label)
        if found is None:
            raise ItemNotFound(f"Instance {row.id} has no address on a network {label[:100]!r}.")
        return {label: _plain(found)}

    async def _interfaces(self, call: Call) -> dict[str, Any]:
        """List a server's ports in Neutron: there are none."""
        await self._servers.get(call.caller, call.parameters["server_id"])
        return {"interfaceAttachments": []}

    async def _floating_ip_pools(self, call: Call) -> NoReturn:
        """Refuse to list pools of floating IPs, in words that lead out: openstacksdk asks here, and shows them."""
        del call
        raise ItemNotFound(
            "there are no floating IPs here",
            remedy="let the client ask for none: auto_ip=False in openstacksdk, auto_ip: false in Ansible",
        )

    def _of_tenant(self, uuid: str, label: str) -> dict[str, Any]:
        # "None" is Nova's own word for what it does not know.
        return {"id": uuid, "label": label, "cidr": self._cidrs.get(uuid, "None")}

    def _find(self, call: Call) -> tuple[str, str]:
        uuid = call.parameters["network_id"]
        if uuid not in self._offered:
            raise ItemNotFound("Network not found")
        return uuid, self._offered[uuid]


def _network(uuid: str, label: str) -> dict[str, Any]:
    return {"id": uuid, "label": label}


def _plain(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"version": each["version"], "addr": each["addr"]} for each in found]
