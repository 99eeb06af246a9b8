"""Networks as clients without Neutron see them, and the addresses of servers."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from sev_agent.config import NetworksSection
from sev_agent.schema import derived_mac
from tests.compute_api import InProcessApi, serving
from tests.unit.api.requests import make_flavor, make_image, message, server

BRIDGE = "f0e1d2c3-0000-4000-8000-000000000001"


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[InProcessApi]:
    """One whose servers are on QEMU's own network unless they ask for another."""
    networks = NetworksSection(auto="user", offered=(f"{BRIDGE}=bridge:br-x",))
    async with serving(tmp_path, networks) as api:
        yield api


async def shown(api: InProcessApi, networks: Any) -> dict[str, Any]:
    """A new server."""
    await make_flavor(api)
    asked = server(make_image(api), networks=networks)
    status, made = await api.ask("POST", "/servers", version="2.37", json=asked)
    assert status == 202, made
    _, body = await api.ask("GET", f"/servers/{made['server']['id']}")
    found: dict[str, Any] = body["server"]
    return found


async def test_the_user_network(api: InProcessApi) -> None:
    """QEMU gives its one address, and the host makes the MAC of the server's identifier: both are known at once."""
    found = await shown(api, "auto")
    mac = derived_mac(UUID(found["id"]), 0)
    entry = {"addr": "10.0.2.15", "version": 4, "OS-EXT-IPS:type": "fixed", "OS-EXT-IPS-MAC:mac_addr": mac}
    assert found["addresses"] == {"user": [entry]}
    assert (found["accessIPv4"], found["accessIPv6"]) == ("10.0.2.15", "")
    path = f"/servers/{found['id']}/ips"
    plain = {"user": [{"addr": "10.0.2.15", "version": 4}]}
    assert await api.ask("GET", path) == (200, {"addresses": plain})
    assert await api.ask("GET", f"{path}/user") == (200, plain)
    assert "no address" in message(*await api.ask("GET", f"{path}/other"))
    _, listed = await api.ask("GET", "/servers/detail")
    assert [each["addresses"] for each in listed["servers"]] == [{"user": [entry]}]


@pytest.mark.parametrize("networks", ["none", [{"uuid": BRIDGE}]])
async def test_what_is_not_known_is_not_told(api: InProcessApi, networks: Any) -> None:
    """No address without a NIC, nor on a bridge, where somebody else gives them."""
    found = await shown(api, networks)
    assert (found["addresses"], found["accessIPv4"]) == ({}, "")
    assert await api.ask("GET", f"/servers/{found['id']}/ips") == (200, {"addresses": {}})


async def test_networks_of_a_tenant(api: InProcessApi) -> None:
    """Terraform's provider finds the networks that are offered, and their names, where there is no Neutron."""
    network = {"id": BRIDGE, "label": "br-x", "cidr": "None"}
    assert await api.ask("GET", "/os-tenant-networks") == (200, {"networks": [network]})
    assert await api.ask("GET", f"/os-tenant-networks/{BRIDGE}") == (200, {"network": network})
    assert (await api.ask("GET", "/os-tenant-networks/x"))[0] == 404
    assert (await api.ask("GET", "/os-tenant-networks", version="2.36"))[0] == 404
