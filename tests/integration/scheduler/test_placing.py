"""Where a request goes, against real Placement and RabbitMQ."""

import asyncio
from uuid import uuid4

import aiohttp

from sev_agent import schema
from sev_agent.compute.nova_tree import NovaTree
from sev_agent.config import ServiceSection
from sev_agent.messaging import envelope, topology
from sev_agent.messaging.broker import Broker
from sev_agent.openstack.identity import NoIdentity
from sev_agent.openstack.placement import Placement
from sev_agent.sev.generation import RESOURCE_CLASS, Generation
from sev_agent.sev.holdings import ConsumerType
from tests.integration.compute.nova_layout import Nova
from tests.integration.scheduler.conftest import (
    OVERHEAD,
    SAID,
    Decider,
    Ear,
    MakeDecider,
    MakeHost,
    counted,
    fields,
    slots_used,
    small,
    told,
)
from tests.rabbitmq import free_port
from tests.releases import release


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
