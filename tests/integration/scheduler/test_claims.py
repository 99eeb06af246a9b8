"""What a claim is worth when something happens between it and the host that is told of the build."""

import asyncio
from typing import Any, cast
from uuid import uuid4

import aiohttp
import pytest

from sev_agent.config import ServiceSection
from sev_agent.messaging.broker import BrokerUnavailable, Unroutable
from sev_agent.messaging.client import RpcClient
from sev_agent.openstack.identity import NoIdentity
from sev_agent.openstack.placement import Allocation, ConcurrentUpdate, Placement
from sev_agent.sev.generation import RESOURCE_CLASS
from sev_agent.sev.holdings import ConsumerType
from tests.integration.scheduler.conftest import (
    Decider,
    Ear,
    FakeHost,
    MakeDecider,
    MakeHost,
    fields,
    said,
    slots_used,
    told,
)
from tests.requests import instance


class CutCasts:
    """A client whose casts fail ``faults`` one by one, before or after they were sent."""

    def __init__(self, client: RpcClient, *faults: Exception, sent: bool = False) -> None:
        self._client, self._faults, self._sent = client, list(faults), sent

    async def cast(self, *arguments: Any, **more: Any) -> None:
        if not self._faults or self._sent:
            await self._client.cast(*arguments, **more)
        if self._faults:
            raise self._faults.pop(0)


class Meddled(Placement):
    """A Placement in which something happens right before the next claims: what is in ``before``, one for each."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        super().__init__(session, NoIdentity(), ServiceSection(endpoint=url))
        self.before: list[Any] = []

    async def put_allocation(self, consumer: Any, allocation: Allocation) -> None:
        if self.before and allocation.resources:
            await self.before.pop(0)()
        await super().put_allocation(consumer, allocation)


@pytest.mark.parametrize("sent", [False, True])
async def test_crash_between_claim_and_cast(
    make_decider: MakeDecider, make_host: MakeHost, client: RpcClient, placement: Placement, *, sent: bool
) -> None:
    """Decided again after a crash, the request goes to the host that was claimed, though another is better by then."""
    host = await make_host(slots=1)
    asked = instance()
    cut = cast("RpcClient", CutCasts(client, BrokerUnavailable("killed"), sent=sent))
    async with make_decider(client=cut) as dying:
        with pytest.raises(BrokerUnavailable):
            await dying.schedule(asked)
    better = await make_host(slots=9)

    async with make_decider() as living:
        await living.schedule(asked)

    assert await told(2 if sent else 1, host, better) == [2 if sent else 1, 0]
    assert await slots_used(placement, host) == 1
    assert await slots_used(placement, better) == 0


async def test_taken_over_by_its_host(decider: Decider, make_host: MakeHost, placement: Placement, ear: Ear) -> None:
    """A request that comes again when its host has begun with it is told to nobody; where it is, is said."""
    host, other = await make_host(slots=1), await make_host(slots=1)
    asked = await decider.schedule(host=host.name)
    held = await placement.allocation(asked.uuid)
    assert held is not None
    begun = Allocation(
        resources=held.resources,
        project_id=held.project_id,
        user_id=held.user_id,
        consumer_type=ConsumerType.INSTANCE,
        consumer_generation=held.consumer_generation,
    )
    await placement.put_allocation(asked.uuid, begun)
    await ear.outcome(asked.uuid)
    ear.heard.clear()

    await decider.schedule(asked)

    assert fields(await ear.outcome(asked.uuid))["host"] == host.name
    assert (host.told, other.told) == (1, 0)


async def test_claim_on_a_host_that_gave_it_up(decider: Decider, make_host: MakeHost, placement: Placement) -> None:
    """A claim that stands on a host that has failed is given back, and made on another."""
    failed = await make_host(slots=1)
    asked = await decider.schedule()
    other = await make_host(slots=1)

    await decider.schedule(asked, tried=said(failed))

    assert (await other.next()).instance == asked
    assert await slots_used(placement, failed) == 0
    assert await slots_used(placement, other) == 1


async def test_last_slot_is_its_own(make_decider: MakeDecider, make_host: MakeHost) -> None:
    """A request that took the last slot of all and comes again is no refusal."""
    host = await make_host(slots=1)
    async with make_decider() as first:
        asked = await first.schedule()
    async with make_decider() as second:
        await second.schedule(asked)
    assert await told(2, host) == [2]


async def test_unroutable(
    make_decider: MakeDecider, make_host: MakeHost, client: RpcClient, placement: Placement
) -> None:
    """A host whose queue vanished between the look and the cast loses the claim, and the next one gets it."""
    hosts = [await make_host(slots=3), await make_host(slots=3)]
    cut = cast("RpcClient", CutCasts(client, Unroutable("no queue")))
    async with make_decider(client=cut) as deciding:
        asked = await deciding.schedule()

    await told(1, *hosts)
    (chosen,) = [host for host in hosts if host.told]
    assert (await chosen.next()).instance == asked
    assert deciding.claims == ["unroutable", "claimed"]
    assert sum([await slots_used(placement, host) for host in hosts]) == 1


async def test_slot_lost_to_another(
    make_decider: MakeDecider,
    make_host: MakeHost,
    session: aiohttp.ClientSession,
    schedulers_placement_url: str,
    placement: Placement,
) -> None:
    """A slot that somebody takes between the look and the claim costs one attempt: the next host gets the guest."""
    best, second = await make_host(slots=1), await make_host(slots=1, memory_mb=64_000)
    meddled = Meddled(session, schedulers_placement_url)

    async def take_all_but_one() -> None:
        # Whichever is claimed first is found full.
        for host in (best, second):
            if host.name == chosen_first(deciding):
                await fill(placement, host)

    async with make_decider(placement=meddled) as deciding:
        meddled.before = [take_all_but_one]
        asked = await deciding.schedule()

    await told(1, best, second)
    (chosen,) = [host for host in (best, second) if host.told]
    assert (await chosen.next()).instance == asked
    assert deciding.claims == ["full", "claimed"]


def chosen_first(deciding: Decider) -> str:
    """The host that is being claimed: the one that looks fuller than it was."""
    ((_, asked),) = deciding.options._looks.items()
    return min(asked.task.result().options, key=lambda option: option.free_slots).host


async def fill(placement: Placement, host: FakeHost) -> None:
    (slots,) = [provider for provider in await placement.tree(host.rp) if provider.parent is not None]
    for _ in range(host.slots):
        claim = Allocation(
            resources={slots.uuid: {RESOURCE_CLASS: 1}}, project_id="x", user_id="x", consumer_type="UNMANAGED"
        )
        await placement.put_allocation(uuid4(), claim)


async def test_conflicts(
    make_decider: MakeDecider,
    make_host: MakeHost,
    session: aiohttp.ClientSession,
    schedulers_placement_url: str,
) -> None:
    """A conflict about a provider's generation is tried again on the same host."""
    host = await make_host(slots=1)
    meddled = Meddled(session, schedulers_placement_url)

    async def conflict() -> None:
        raise ConcurrentUpdate("somebody was faster")

    async with make_decider(placement=meddled) as deciding:
        meddled.before = [conflict, conflict, conflict]
        asked = await deciding.schedule()

    assert (await host.next()).instance == asked
    assert deciding.claims == ["claimed"]


async def test_many_at_once(make_decider: MakeDecider, make_host: MakeHost, placement: Placement, ear: Ear) -> None:
    """Of twelve requests at once for five slots, by two schedulers, five are placed, each slot once."""
    hosts = [await make_host(slots=2), await make_host(slots=3)]
    asked = [instance() for _ in range(12)]
    async with make_decider() as one, make_decider() as other:
        await asyncio.gather(*((one, other)[n % 2].schedule(each) for n, each in enumerate(asked)))

    outcomes = [(await ear.outcome(each.uuid)).event_type.rsplit(".", 1)[1] for each in asked]
    assert (outcomes.count("end"), outcomes.count("error")) == (5, 7)
    assert [await slots_used(placement, host) for host in hosts] == [2, 3]
    assert await told(5, *hosts) == [2, 3]
