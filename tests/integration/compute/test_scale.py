"""A host with a thousand encrypted guests costs libvirt and Placement no more than one with few."""

import asyncio
from collections import Counter
from dataclasses import replace
from uuid import UUID, uuid4

import pytest

from sev_agent.compute.inventory import HostResources
from sev_agent.compute.record import State
from sev_agent.openstack.placement import Inventory
from tests.integration.compute.conftest import FULL_SIZE, OVERHEAD, UNMANAGED_SIZE, CountingHost, resources
from tests.integration.compute.counting import count_libvirt_calls
from tests.libvirt_host import SEV, domain_xml
from tests.requests import record

MANY = 1000
FEW = 10
PATIENCE = 120.0
"""Seconds for a thousand writes to one Placement on SQLite, on a machine that others use too."""


def large(guests: int) -> HostResources:
    """A host with room for that many, and for as many builds."""
    room = 2 * guests + 10
    memory = room * (64 + OVERHEAD)
    root = {
        "VCPU": Inventory(total=2 * room, max_unit=room),
        "MEMORY_MB": Inventory(total=memory, max_unit=memory),
        "DISK_GB": Inventory(total=room, max_unit=room),
    }
    return replace(resources(slots=room), root=root)


async def populate(host: CountingHost, guests: int) -> list[UUID]:
    """Guests that all start at once, each counted before this returns."""
    uuids = [uuid4() for _ in range(guests)]
    texts = [domain_xml(uuid, f"guest-{uuid}", security=SEV) for uuid in uuids]
    # Not by our own define, which reads libvirt's whole schema for each.
    await host.libvirt.hypervisor.act(lambda connection: [connection.createXML(text) for text in texts])
    async with asyncio.timeout(PATIENCE):
        while await counted(host) != guests:  # noqa: ASYNC110 - Placement rings no bell
            await asyncio.sleep(0.1)
    return uuids


async def counted(host: CountingHost) -> int:
    return int(sum(value for _, value in host.accounting.slots_used()))


@pytest.fixture
async def crowded(host: CountingHost) -> tuple[CountingHost, list[UUID]]:
    """A thousand guests, started at once, and nothing that differs."""
    given = large(MANY)
    await host.reconcile(given)
    uuids = await populate(host, MANY)
    await host.reconcile(given)
    return host, uuids


async def cost(host: CountingHost, given: HostResources, **how: bool) -> tuple[Counter[str], list[str]]:
    """The calls to libvirt and the requests to Placement of one comparison."""
    with pytest.MonkeyPatch.context() as patch:
        calls = count_libvirt_calls(patch)
        methods = await host.requests_of(lambda: host.reconcile(given, **how))
    return calls, methods


async def test_a_thousand(crowded: tuple[CountingHost, list[UUID]]) -> None:
    """All thousand starts are in Placement; then a comparison costs one call and one read, a thorough one no write."""
    host, uuids = crowded
    child = await host.placement.find_provider(f"{host.name}_amd_sev")
    assert child is not None
    _, held = await host.placement.provider_allocations(child.uuid)
    assert held.keys() == set(uuids)
    assert await host.held(uuids[-1]) == UNMANAGED_SIZE
    given = large(MANY)
    assert (await host.reconcile(given)).is_clean

    calls, methods = await cost(host, given)
    thorough_calls, thorough = await cost(host, given, thorough=True)

    assert (calls.total(), methods) == (1, ["GET"])
    assert set(thorough) == {"GET"}
    assert len(thorough) <= 10
    # An event is about one guest: no other is looked at.
    with pytest.MonkeyPatch.context() as patch:
        event_calls = count_libvirt_calls(patch)
        host.requests.clear()
        await host.libvirt.domains.destroy(uuids[0])
        await host.eventually_holds(uuids[0], {})
    assert event_calls["virConnectGetAllDomainStats"] == 0
    assert event_calls["virDomainGetXMLDesc"] <= 1
    assert event_calls.total() <= 8
    assert thorough_calls.total() == 1
    claimed = record(State.BUILDING)
    assert await host.requests_of(lambda: host.accounting.claim(claimed)) == ["PUT"]
    assert await host.held(claimed.uuid) == FULL_SIZE
    assert await host.requests_of(lambda: host.accounting.release(claimed.uuid)) == ["GET", "PUT"]


async def test_few(host: CountingHost) -> None:
    """With ten guests everything costs what it costs with a thousand: these are the numbers asserted there."""
    given = large(FEW)
    await host.reconcile(given)
    await populate(host, FEW)
    for _ in range(2):
        await host.reconcile(given)

    calls, methods = await cost(host, given)
    thorough_calls, thorough = await cost(host, given, thorough=True)

    assert (calls.total(), methods) == (1, ["GET"])
    assert set(thorough) == {"GET"}
    assert len(thorough) <= 10
    assert thorough_calls.total() == 1
