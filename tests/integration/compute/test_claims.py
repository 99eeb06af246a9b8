"""A claim takes a guest's size and a slot at once, or nothing; a release gives all of it back."""

import asyncio

import pytest

from sev_agent.compute.accounting import NotRegistered
from sev_agent.compute.record import State
from sev_agent.openstack.placement import Allocation, Full, Inventory
from sev_agent.sev.generation import RESOURCE_CLASS
from tests.integration.compute.conftest import FULL_SIZE, SLOTS, CountingHost, registered
from tests.requests import record


async def test_claim_before_registration(host: CountingHost) -> None:
    """Without a provider nothing can be claimed, and the error says where to look."""
    with pytest.raises(NotRegistered, match="/readyz"):
        await host.accounting.claim(record(State.BUILDING))


async def test_claim_and_release(host: CountingHost) -> None:
    """A claim takes all of a guest's size and a slot in one request, a release gives all of it back."""
    await registered(host)
    claimed = record(State.BUILDING)

    methods = await host.requests_of(lambda: host.accounting.claim(claimed))

    assert methods == ["PUT"]
    assert await host.held(claimed.uuid) == FULL_SIZE
    assert host.accounting.slots_used() == [(("amd-sev",), 1.0)]
    await host.accounting.release(claimed.uuid)
    assert await host.held(claimed.uuid) == {}
    assert host.accounting.slots_used() == [(("amd-sev",), 0.0)]


async def test_full(host: CountingHost) -> None:
    """The claim after the last slot is refused with one request, and takes nothing."""
    await registered(host)
    for _ in range(SLOTS):
        await host.accounting.claim(record(State.BUILDING))
    refused = record(State.BUILDING)
    host.requests.clear()

    with pytest.raises(Full):
        await host.accounting.claim(refused)

    assert host.requests == [("PUT", 409)]
    assert await host.held(refused.uuid) == {}


async def test_claims_at_once(host: CountingHost) -> None:
    """Ten claims at once for two slots: two succeed, eight are full, none is lost to a conflict."""
    await registered(host)

    outcomes = await asyncio.gather(
        *(host.accounting.claim(record(State.BUILDING)) for _ in range(10)), return_exceptions=True
    )

    assert outcomes.count(None) == SLOTS
    assert all(isinstance(outcome, Full) for outcome in outcomes if outcome is not None)


async def test_claim_of_a_claimed(host: CountingHost) -> None:
    """What the consumer holds already, as after a crash, is replaced; a claim that is right is not written again."""
    root, _ = await registered(host)
    claimed = record(State.BUILDING)
    stale = Allocation(
        resources={root.uuid: {"VCPU": 1}}, project_id="project", user_id="user", consumer_type="INSTANCE"
    )
    await host.placement.put_allocation(claimed.uuid, stale)

    await host.accounting.claim(claimed)

    assert await host.held(claimed.uuid) == FULL_SIZE
    assert await host.requests_of(lambda: host.accounting.claim(claimed)) == ["GET"]


async def test_conflicting_claims_are_retried(host: CountingHost) -> None:
    """Claims that collide with writes to the same providers all succeed."""
    await registered(host)
    _, child = await registered(host)

    async def disturb() -> None:
        for total in (3, 4, 5, SLOTS):
            generation, _ = await host.placement.inventories(child.uuid)
            await host.placement.set_inventories(
                child.uuid, generation, {RESOURCE_CLASS: Inventory(total=total, max_unit=1)}
            )

    claimed = [record(State.BUILDING) for _ in range(SLOTS)]
    outcomes = await asyncio.gather(*(host.accounting.claim(one) for one in claimed), disturb(), return_exceptions=True)

    assert outcomes[:SLOTS] == [None] * SLOTS
