"""Networks as clients without Neutron see them, and the addresses of servers."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import select, update

from sev_agent.api.tables import ServerRow
from sev_agent.api.told import Fault, Listener, Outcome, Told
from sev_agent.api.upkeep import Upkeep
from sev_agent.config import AddressPool, DatabaseSection, NetworksSection, UpkeepSection
from sev_agent.errors import Unavailable
from sev_agent.messaging.broker import Unroutable
from sev_agent.messaging.client import MessagingTimeout
from sev_agent.schema import Address, ScheduleArguments, derived_mac, parse
from tests.compute_api import InProcessApi, serving, upkeep_of
from tests.unit.api.requests import make_flavor, make_image, message, server

BRIDGE = "f0e1d2c3-0000-4000-8000-000000000001"
POOLED = "f0e1d2c3-0000-4000-8000-000000000002"
POOL = AddressPool.model_validate(
    {
        "network": POOLED,
        "cidr": "192.0.2.0/24",
        "first": "192.0.2.10",
        "last": "192.0.2.12",
        "gateway": "192.0.2.1",
        "dns": ["192.0.2.2"],
    }
)


@pytest.fixture
async def api(settings: DatabaseSection) -> AsyncIterator[InProcessApi]:
    """One whose servers are on QEMU's own network unless they ask for another."""
    networks = NetworksSection(auto="user", offered=(f"{BRIDGE}=bridge:br-x", f"{POOLED}=bridge:br-p"), pools=(POOL,))
    async with serving(settings, networks=networks) as api:
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
    pooled = {"id": POOLED, "label": "br-p", "cidr": "192.0.2.0/24"}
    assert await api.ask("GET", "/os-tenant-networks") == (200, {"networks": [network, pooled]})
    assert await api.ask("GET", f"/os-tenant-networks/{BRIDGE}") == (200, {"network": network})
    assert (await api.ask("GET", "/os-tenant-networks/x"))[0] == 404
    assert (await api.ask("GET", "/os-tenant-networks", version="2.36"))[0] == 404


@pytest.mark.parametrize("version", ["2.1", "2.61"])
async def test_floating_ips(api: InProcessApi, version: str) -> None:
    """A client that looks for one, as Ansible's module does unless told otherwise, hears that there are none."""
    text = message(*await api.ask("GET", "/os-floating-ip-pools", version=version))
    assert text.startswith("there are no floating IPs here (let the client ask for none: auto_ip=False")


async def create(api: InProcessApi, *networks: dict[str, str], **fields: Any) -> tuple[int, Any]:
    """The answer to a request for a server on ``networks``; the flavor is there."""
    return await api.ask("POST", "/servers", json=server(make_image(api), networks=list(networks), **fields))


async def addresses(api: InProcessApi) -> list[str]:
    """Of every server, the addresses that it shows."""
    _, listed = await api.ask("GET", "/servers/detail")
    return sorted(each["addr"] for one in listed["servers"] for each in one["addresses"].get("br-p", []))


async def test_an_address_from_the_pool(api: InProcessApi) -> None:
    """It is shown at once, and travels to the host with what the guest needs to use it; other NICs are as they were."""
    await make_flavor(api)
    status, made = await create(api, {"uuid": BRIDGE}, {"uuid": POOLED}, {"uuid": POOLED})
    assert status == 202
    ((_, sent),) = api.sent.casts
    instance = parse(ScheduleArguments, sent).instance
    first, second, third = instance.networks
    assert (first.address, second.source) == (None, "br-p")
    expected = {"interface": "192.0.2.10/24", "gateway": "192.0.2.1", "dns": ["192.0.2.2"]}
    assert second.address == Address.model_validate(expected)
    assert third.address == Address.model_validate({**expected, "interface": "192.0.2.11/24"})
    _, shown = await api.ask("GET", f"/servers/{made['server']['id']}")
    entries = shown["server"]["addresses"]["br-p"]
    macs = [derived_mac(instance.uuid, index) for index in (1, 2)]
    assert [(each["addr"], each["OS-EXT-IPS-MAC:mac_addr"]) for each in entries] == [
        ("192.0.2.10", macs[0]),
        ("192.0.2.11", macs[1]),
    ]
    assert shown["server"]["accessIPv4"] == "192.0.2.10"


async def test_a_pool_is_used_up(api: InProcessApi) -> None:
    """The refusal says so, and leaves nothing behind; what a deleted server had is given again."""
    await make_flavor(api)
    made = [await create(api, {"uuid": POOLED}) for _ in range(3)]
    text = message(*await create(api, {"uuid": POOLED}))
    assert "all of 192.0.2.10 to 192.0.2.12" in text
    assert await addresses(api) == ["192.0.2.10", "192.0.2.11", "192.0.2.12"]
    gone = made[1][1]["server"]["id"]
    await api.withdrawals.withdraw([gone])
    assert await addresses(api) == ["192.0.2.10", "192.0.2.12"]
    assert "No more addresses" in message(*await create(api, {"uuid": POOLED}, max_count=2))
    assert (await create(api, {"uuid": POOLED}))[0] == 202
    assert await addresses(api) == ["192.0.2.10", "192.0.2.11", "192.0.2.12"]


@pytest.fixture
async def upkeep(api: InProcessApi) -> Upkeep:
    """On the API's database, over what it would send."""
    return upkeep_of(api)


@pytest.mark.parametrize("has_left", [False, True])
async def test_what_a_guest_may_still_use(api: InProcessApi, upkeep: Upkeep, *, has_left: bool) -> None:
    """Where a host is away or has left, a server is gone for its owner; its address is free when the host says so."""
    await make_flavor(api)
    asked = {"uuid": POOLED, "fixed_ip": "192.0.2.10"}
    _, made = await create(api, asked)
    path = f"/servers/{made['server']['id']}"
    database = api.withdrawals._database
    async with database.writing() as session:
        await session.execute(update(ServerRow).values(host="c-1", vm_state="active", task_state=None))
    api.sent.fault = Unroutable("nobody listens") if has_left else None
    assert (await api.ask("DELETE", path))[0] == 204
    if not has_left:
        async with database.writing() as session:
            await session.execute(update(ServerRow).values(looks=1000))
        api.sent.fault = MessagingTimeout("no reply")
        assert await upkeep._see_after(made["server"]["id"]) == "forgotten"
    api.sent.fault = None
    assert (await api.ask("GET", path))[0] == 404
    assert "already in use" in message(*await create(api, asked))
    async with database.writing() as session:
        (row,) = await session.scalars(select(ServerRow).where(ServerRow.deleted_at.is_not(None)))
        word = Told(instance_uuid=row.id, host="c-1", state="deleted", updated_at=datetime.now(UTC))
        assert Listener(UpkeepSection()).by_host(row, "delete", word).outcome is Outcome.APPLIED
    assert (await create(api, asked))[0] == 202


async def test_what_a_waiting_request_may_still_use(api: InProcessApi, upkeep: Upkeep) -> None:
    """While the schedulers have the request of a deleted server, its address is its own; until they say: no host."""
    await make_flavor(api)
    asked = {"uuid": POOLED, "fixed_ip": "192.0.2.10"}
    _, made = await create(api, asked)
    assert (await api.ask("DELETE", f"/servers/{made['server']['id']}"))[0] == 204
    api.sent.waiting = 1
    assert await upkeep._see_after(made["server"]["id"]) == "forgotten"
    assert (await api.ask("GET", f"/servers/{made['server']['id']}"))[0] == 404
    assert "already in use" in message(*await create(api, asked))
    async with api.withdrawals._database.writing() as session:
        (row,) = await session.scalars(select(ServerRow).where(ServerRow.deleted_at.is_not(None)))
        word = Told(instance_uuid=row.id, fault=Fault(code="scheduler.no_valid_host"))
        assert Listener(UpkeepSection()).by_scheduler(row, "error", word).outcome is Outcome.APPLIED
        assert Listener(UpkeepSection()).by_scheduler(row, "error", word).outcome is Outcome.STALE
    assert (await create(api, asked))[0] == 202


async def test_a_request_that_fails_keeps_no_address(api: InProcessApi) -> None:
    """Where the schedulers cannot be reached, the address is free again."""
    await make_flavor(api)
    api.sent.fault = Unavailable("no broker")
    for _ in range(4):
        assert (await create(api, {"uuid": POOLED}))[0] == 503
    api.sent.fault = None
    assert (await create(api, {"uuid": POOLED}))[0] == 202
    assert await addresses(api) == ["192.0.2.10"]


async def test_a_fixed_address(api: InProcessApi) -> None:
    """The one asked for, or a refusal that says why not."""
    await make_flavor(api)
    asked = {"uuid": POOLED, "fixed_ip": "192.0.2.12"}
    assert (await create(api, asked))[0] == 202
    assert await addresses(api) == ["192.0.2.12"]
    for expected, fields, networks in (
        ("409 already in use", {}, [asked]),
        ("409 already in use", {}, [{**asked, "fixed_ip": "192.0.2.11"}] * 2),
        ("400 192.0.2.10 to 192.0.2.12", {}, [{**asked, "fixed_ip": "192.0.2.13"}]),
        ("400 not for several", {"max_count": 2}, [{**asked, "fixed_ip": "192.0.2.11"}]),
        ("400 gives no addresses", {}, [{**asked, "uuid": BRIDGE}]),
        ("400 fixed_ip", {}, [{**asked, "fixed_ip": "2001:db8::1"}]),
    ):
        status, body = await create(api, *networks, **fields)
        assert str(status) == expected[:3], body
        assert expected[4:] in message(status, body)
    assert await addresses(api) == ["192.0.2.12"]


async def test_fixed_addresses_of_one_request_come_first(api: InProcessApi) -> None:
    """A NIC that takes any address does not take the one that the next NIC asks for."""
    await make_flavor(api)
    assert (await create(api, {"uuid": POOLED}, {"uuid": POOLED, "fixed_ip": "192.0.2.10"}))[0] == 202
    assert await addresses(api) == ["192.0.2.10", "192.0.2.11"]


async def test_many_at_once(api: InProcessApi) -> None:
    """Of eight requests by two projects for three addresses three get one each, and the others hear why not."""
    await make_flavor(api)
    body = server(make_image(api), networks=[{"uuid": POOLED}])
    asked = (api.ask("POST", "/servers", json=body, project=project) for project in ("red", "blue") * 4)
    answers = await asyncio.gather(*asked)
    assert sorted(status for status, _ in answers) == [202] * 3 + [409] * 5
    instances = [parse(ScheduleArguments, sent).instance for _, sent in api.sent.casts]
    given = [str(nic.address.interface.ip) for one in instances for nic in one.networks if nic.address is not None]
    assert sorted(given) == ["192.0.2.10", "192.0.2.11", "192.0.2.12"]
