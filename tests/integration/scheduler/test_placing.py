"""Where a request goes, against real Placement and RabbitMQ."""

import asyncio
from typing import Any, cast
from uuid import uuid4

import aiohttp
import pytest

from sev_agent import schema
from sev_agent.compute.nova_tree import NovaTree
from sev_agent.config import ServiceSection
from sev_agent.messaging import envelope, topology
from sev_agent.messaging.broker import Broker, BrokerUnavailable, Unroutable
from sev_agent.messaging.client import RpcClient
from sev_agent.openstack.identity import NoIdentity
from sev_agent.openstack.placement import Allocation, ConcurrentUpdate, Placement
from sev_agent.scheduler.explanation import Stage
from sev_agent.sev.generation import DISABLED_TRAIT, RESOURCE_CLASS, Generation
from sev_agent.sev.holdings import ConsumerType
from tests.integration.compute.nova_layout import Nova
from tests.integration.scheduler.conftest import (
    OVERHEAD,
    Decider,
    Ear,
    FakeHost,
    MakeDecider,
    MakeHost,
    fields,
    slots_used,
    small,
    told,
)
from tests.rabbitmq import free_port
from tests.releases import release
from tests.requests import instance, requested

SAID = {"code": "hypervisor.no_slot", "message": "every slot is taken"}


def said(*hosts: FakeHost) -> list[dict[str, str]]:
    return [{"host": host.name, **SAID} for host in hosts]


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


async def test_claimed_and_told(decider: Decider, make_host: MakeHost, placement: Placement, ear: Ear) -> None:
    """The host hears of the build once its slot, processors, memory and disk are claimed for the instance."""
    host = await make_host(slots=1)

    asked = await decider.schedule()

    build = await host.next()
    assert build.instance == asked
    assert build.scheduling is not None
    assert (build.scheduling.forced_host, build.scheduling.tried) == (None, ())
    held = await placement.allocation(asked.uuid)
    assert held is not None
    assert (held.consumer_type, held.project_id) == (ConsumerType.SCHEDULED, "project")
    amounts = {name: amount for given in held.resources.values() for name, amount in given.items()}
    assert amounts == {"VCPU": 2, "MEMORY_MB": 64 + OVERHEAD, "DISK_GB": 1, RESOURCE_CLASS: 1}
    end = await ear.outcome(asked.uuid)
    assert [heard.event_type.rsplit(".", 1)[1] for heard in ear.of(asked.uuid)] == ["start", "end"]
    assert end.publisher_id == "sev_scheduler.tests"
    assert fields(end)["host"] == host.name
    assert fields(end)["project_id"] == "project"


async def test_spread_and_pack(make_decider: MakeDecider, make_host: MakeHost) -> None:
    """Spread takes turns among equal hosts, also for requests that share one look; pack fills one first."""
    one, other = await make_host(slots=4), await make_host(slots=4)
    async with make_decider() as spreading:
        await asyncio.gather(*(spreading.schedule() for _ in range(4)))
    assert await told(4, one, other) == [2, 2]

    async with make_decider(strategy="pack") as packing:
        await packing.schedule()
        await packing.schedule()
    assert sorted(await told(6, one, other)) == [2, 4]


async def test_dead_host(decider: Decider, make_host: MakeHost, broker: Broker, placement: Placement) -> None:
    """A host whose queue nobody consumes, or that has none, is passed over however many slots it has."""
    alive, dead, never_there = [await make_host(slots=s, alive=s < 5) for s in (2, 50, 40)]
    channel = await (await broker.link()).channel()
    await topology.work_queue(dead.name, delivery_limit=5).declare(channel, timeout=5)

    asked = await decider.schedule()

    assert (await alive.next()).instance == asked
    assert await slots_used(placement, dead) == await slots_used(placement, never_there) == 0


async def test_nova_layouts(
    decider: Decider,
    make_host: MakeHost,
    placement: Placement,
    session: aiohttp.ClientSession,
    schedulers_placement_url: str,
) -> None:
    """Beside Nova, slots on the root (before 2025.2) and on a child (since) are both found and claimed."""
    nova = Nova(placement, session, schedulers_placement_url)
    for with_children in (False, True):
        node = f"nova-{uuid4().hex[:6]}"
        laid_out = await nova.register(node, with_children=with_children)
        await NovaTree(placement, node).establish(small(1))
        host = await make_host(name=node, registered=False)

        asked = await decider.schedule(host=node)

        assert (await host.next()).instance == asked
        held = await placement.allocation(asked.uuid)
        assert held is not None
        assert held.resources[laid_out.slots][RESOURCE_CLASS] == 1
        assert held.resources[laid_out.providers[node].uuid]["VCPU"] == 2
        for consumer in (*laid_out.consumers, asked.uuid):
            await release(placement, consumer)


async def test_generations(decider: Decider, make_host: MakeHost) -> None:
    """A guest goes to a host that has its generation, and takes a slot of that one."""
    both = await make_host(slots=1, generations=(Generation.SEV, Generation.SEV_ES))
    await make_host(slots=9)

    asked = await decider.schedule(generation="amd-sev-es")

    assert (await both.next()).instance == asked


async def test_forced_host(decider: Decider, make_host: MakeHost, ear: Ear) -> None:
    """The host that was asked for gets it, be it the worse; where that one cannot, no other does."""
    await make_host(slots=9)
    worse = await make_host(slots=1)

    asked = await decider.schedule(host=worse.name)
    refused = await decider.schedule(host=worse.name)
    unknown = await decider.schedule(host="nobody")

    build = await worse.next()
    assert build.instance == asked
    assert build.scheduling is not None
    assert build.scheduling.forced_host == worse.name
    full = fields(await ear.outcome(refused.uuid))
    assert full["counts"] == counted(1, 1, 1, 1, 0)
    assert f"'{worse.name}'" in full["fault"]["message"]
    assert fields(await ear.outcome(unknown.uuid))["counts"] == counted(0)


def counted(*hosts: int) -> dict[str, int]:
    """The counts of each stage; the last one given is that of all that follow."""
    return {stage.value: hosts[min(n, len(hosts) - 1)] for n, stage in enumerate(Stage)}


async def test_counts_that_explain(
    decider: Decider, make_host: MakeHost, placement: Placement, ear: Ear, session: aiohttp.ClientSession
) -> None:
    """Without a host, the counts say at which condition each dropped out, and the text ends with the last one."""
    plain = await placement.create_provider(f"plain-{uuid4().hex[:6]}", uuid=uuid4())
    assert plain.parent is None
    disabled = await make_host(slots=5)
    generation, traits = await placement.traits(disabled.rp)
    await placement.set_traits(disabled.rp, generation, traits | {DISABLED_TRAIT})
    await make_host(slots=5, alive=False)
    full, small_one, tried = await make_host(slots=1), await make_host(slots=5, memory_mb=200), await make_host(slots=5)
    await decider.schedule(host=full.name)
    big = requested()
    big["flavor"]["memory_mb"] = 4096

    asked = await decider.schedule(instance(flavor=big["flavor"]), tried=said(tried))

    error = await ear.outcome(asked.uuid)
    assert (error.event_type, error.priority) == ("sev.instance.schedule.error", "error")
    assert fields(error)["counts"] == {
        "known": 6,
        "of_node_type": 5,
        "enabled": 4,
        "alive": 3,
        "free_slot": 2,
        "enough_ram": 1,
        "enough_disk": 1,
        "enough_vcpus": 1,
        "not_tried": 0,
    }
    fault = fields(error)["fault"]
    assert fault["code"] == "scheduler.no_valid_host"
    assert f"0 not tried yet. {tried.name} said: every slot is taken (hypervisor.no_slot)" in fault["message"]
    assert fields(error)["tried"] == said(tried)
    assert await placement.allocation(asked.uuid) is None
    assert small_one.told == 0


async def test_no_host_at_all(decider: Decider, ear: Ear) -> None:
    """In a cloud that no host has joined yet, that is what is said."""
    asked = await decider.schedule()
    assert fields(await ear.outcome(asked.uuid))["counts"] == counted(0)


async def test_up_to_three_hosts(decider: Decider, make_host: MakeHost, placement: Placement, ear: Ear) -> None:
    """A build that fails goes to a second and a third host, each time to one that has not tried; then it is over."""
    hosts = [await make_host(slots=3) for _ in range(5)]
    asked = instance()
    tried: list[FakeHost] = []
    for n in range(3):
        await decider.schedule(asked, **({"tried": said(*tried)} if tried else {}))
        await told(n + 1, *hosts)
        (now,) = [host for host in hosts if host.told and host not in tried]
        build = await now.next()
        assert build.scheduling is not None
        assert [attempt.host for attempt in build.scheduling.tried] == [host.name for host in tried]
        await release(placement, asked.uuid)
        tried.append(now)
        assert len(tried) == n + 1
    ear.heard.clear()

    await decider.schedule(asked, tried=said(*tried))

    error = fields(await ear.outcome(asked.uuid))
    assert error["fault"]["message"].startswith("3 hosts could not build the server")
    assert all(f"{host.name} said" in error["fault"]["message"] for host in tried)
    assert sum(host.told for host in hosts) == 3
    assert await placement.allocation(asked.uuid) is None


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


async def test_postponed(make_decider: MakeDecider, broker: Broker, session: aiohttp.ClientSession, ear: Ear) -> None:
    """While Placement stays away, a request goes to the end of the queue as it came, which counts as no attempt."""
    nowhere = Placement(session, NoIdentity(), ServiceSection(endpoint=f"http://127.0.0.1:{free_port()}"))
    tried = [{"host": "node1", **SAID}]
    async with make_decider(placement=nowhere, patience=0.3) as deciding:
        asked = await deciding.schedule(host="node2", tried=tried, generation="amd-sev-es")
    assert not deciding.health.is_ready

    channel = await (await broker.link()).channel()
    queue = await channel.declare_queue(topology.SCHEDULER_QUEUE, passive=True)
    again = await queue.get(no_ack=True, timeout=10)
    await channel.close()

    assert again is not None
    request = envelope.decode_request(envelope.unpack(again.body, max_bytes=100_000))
    known = schema.parse(schema.RescheduleArguments, request.arguments)
    assert request.method == "reschedule_instance"
    assert (known.instance, known.host, known.generation) == (asked, "node2", Generation.SEV_ES)
    assert [attempt.host for attempt in known.tried] == ["node1"]
    assert not again.headers.get("x-delivery-count")
    assert [heard.event_type for heard in ear.of(asked.uuid)] == ["sev.instance.schedule.start"]
