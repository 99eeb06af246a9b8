"""How many requests a scheduler, and API and scheduler together, place in a second.

That is compared with the bare claims that Placement takes in a second of as many clients.
"""

import asyncio
import contextlib
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias
from uuid import UUID

import aiohttp
from pydantic import JsonValue

from sev_agent import schema
from sev_agent.cli.remote import connected
from sev_agent.compute.inventory import HostResources
from sev_agent.compute.own_tree import OwnTree
from sev_agent.compute.slots import SlotTotal
from sev_agent.config import load
from sev_agent.messaging import topology
from sev_agent.messaging.answering import Method
from sev_agent.messaging.broker import Broker
from sev_agent.messaging.client import RpcClient
from sev_agent.messaging.envelope import RequestContext
from sev_agent.messaging.notifications import subscribe
from sev_agent.messaging.server import RpcServer
from sev_agent.openstack.identity import identify
from sev_agent.openstack.placement import Allocation, Inventory, Placement
from sev_agent.scheduler.demand import SLOT_GROUP, Request
from sev_agent.schema import ScheduleArguments, parse
from sev_agent.sev.generation import Generation
from tests.bench import control, guests
from tests.bench.control import Control
from tests.bench.daemon import resident_mb
from tests.bench.result import Result
from tests.bench.stage import Stage
from tests.releases import release

CLAIMS: Final = 200
CLIENTS: Final = 10
RUNS: Final = 3
RATIO_GOAL: Final = 1 / 0.7
RESIDENT_GOAL_MB: Final = 70.0

_HOSTS: Final = 3
_SECONDS: Final = 120.0
_MAX_BYTES: Final = 1024 * 1024


async def placed(stage: Stage) -> list[Result]:
    """Servers created, and requests cast, until every claim is made, against the same claims made directly, by turns.

    The goal is 0.7 of Placement's own rate; here, where smaller is better, that is 1.43 times the time of one claim.
    """
    raw: list[float] = []
    scheduled: list[float] = []
    created: list[float] = []
    async with _scene(stage) as scene:
        for way in (scene.schedule, scene.create):
            await scene.timed(way, CLIENTS)
        for _ in range(RUNS):
            raw.append(await scene.timed(scene.claim, CLAIMS))
            scheduled.append(await scene.timed(scene.schedule, CLAIMS))
            created.append(await scene.timed(scene.create, CLAIMS))
        resident = resident_mb(scene.control.scheduler)
    return [
        Result.of("claims.raw", raw, "ms"),
        *_beside("claims.scheduled", scheduled, raw),
        *_beside("claims.created", created, raw),
        Result.of("claims.scheduler-resident", [resident], "MiB", goal=RESIDENT_GOAL_MB),
    ]


def _beside(name: str, ours: Sequence[float], raw: Sequence[float]) -> list[Result]:
    floor = statistics.median(raw)
    ratios = [each / least for each, least in zip(ours, raw, strict=True)]
    ratio = statistics.median(ours) / floor
    return [
        Result.of(name, ours, "ms", floor=floor),
        Result.of(f"{name}-ratio", ratios, "x", value=ratio, floor=1, goal=RATIO_GOAL),
    ]


@dataclass(slots=True, kw_only=True)
class _Scene:
    """An API and a scheduler, hosts that only take what they are told, and Placement beside them."""

    placement: Placement
    broker: Broker
    client: RpcClient
    image: UUID
    overhead_mb: int
    control: Control
    providers: frozenset[UUID]

    async def timed(self, way: "_Way", count: int) -> float:
        """Milliseconds for each of ``count``; what they hold is given back, off the clock."""
        asked = [parse(ScheduleArguments, {"instance": guests.request(self.image)}) for _ in range(count)]
        begun = time.monotonic()
        made = await way(asked)
        seconds = time.monotonic() - begun
        for uuid in made:
            await release(self.placement, uuid)
        return seconds / count * 1000

    async def claim(self, asked: Sequence[ScheduleArguments]) -> list[UUID]:
        """By Placement alone."""
        demand = Request.of(asked[0], overhead_mb=self.overhead_mb).demand
        everywhere = (await self.placement.allocation_candidates(demand.groups, limit=1000)).candidates
        # A host that another benchmark has left there is dead: the scheduler does not choose it either.
        found = [candidate for candidate in everywhere if candidate.resources.keys() <= self.providers]
        assert found
        assert all(SLOT_GROUP in candidate.groups for candidate in found)

        async def one(number: int) -> None:
            claim = Allocation(
                resources=found[number % len(found)].resources,
                project_id="bench",
                user_id="bench",
                consumer_type="SCHEDULED",
            )
            await self.placement.put_allocation(asked[number].instance.uuid, claim)

        await _side_by_side(one, len(asked))
        return [each.instance.uuid for each in asked]

    async def schedule(self, asked: Sequence[ScheduleArguments]) -> list[UUID]:
        """By the scheduler, cast as the API casts."""

        async def one(number: int) -> UUID:
            instance = asked[number].instance
            arguments = {"instance": instance.model_dump(mode="json")}
            await self.client.cast("schedule_instance", arguments, queue=topology.SCHEDULER_QUEUE)
            return instance.uuid

        return await self._placed(one, len(asked))

    async def create(self, asked: Sequence[ScheduleArguments]) -> list[UUID]:
        """By the API and the scheduler, as a tenant asks."""

        async def one(number: int) -> UUID:
            name = asked[number].instance.name
            return await self.control.operator.create(name, image=self.image, flavor=self.control.flavor)

        return await self._placed(one, len(asked))

    async def _placed(self, one: Callable[[int], Awaitable[UUID]], count: int) -> list[UUID]:
        """What was placed, once all is that ``one`` asks for."""
        placed: list[UUID] = []
        async with asyncio.timeout(_SECONDS), subscribe(self.broker, max_message_bytes=_MAX_BYTES) as heard:
            await _side_by_side(one, count)
            while len(placed) < count:
                told = await anext(heard)
                assert told.event_type != "sev.instance.schedule.error", told.payload
                if told.event_type == "sev.instance.schedule.end":
                    placed.append(UUID(str(told.payload["instance_uuid"])))
        return placed


_Way: TypeAlias = Callable[[Sequence[ScheduleArguments]], Awaitable[list[UUID]]]


async def _side_by_side(work: Callable[[int], Awaitable[object]], count: int) -> None:
    """``work`` for every number below ``count``, by as many clients as there are."""
    numbers = iter(range(count))

    async def client() -> None:
        for number in numbers:
            await work(number)

    await asyncio.gather(*(client() for _ in range(CLIENTS)))


@contextlib.asynccontextmanager
async def _scene(stage: Stage) -> AsyncIterator[_Scene]:
    config = load(stage.lab.agent_config(stage.host), {})
    async with contextlib.AsyncExitStack() as stack:
        session = await stack.enter_async_context(aiohttp.ClientSession())
        placement = Placement(session, identify(config.auth, session), config.placement)
        remote = await stack.enter_async_context(connected(stage.lab.rabbit_url, ""))
        hosts = [
            await stack.enter_async_context(_host(f"bench-{number}", placement, remote.broker))
            for number in range(_HOSTS)
        ]
        parts = await stack.enter_async_context(control.running(stage.lab))
        yield _Scene(
            placement=placement,
            broker=remote.broker,
            client=remote.client,
            image=stage.image.id,
            overhead_mb=config.placement.guest_overhead_mb,
            control=parts,
            providers=frozenset().union(*hosts),
        )


@contextlib.asynccontextmanager
async def _host(name: str, placement: Placement, broker: Broker) -> AsyncIterator[frozenset[UUID]]:
    """A host with room for everything, that does nothing with what it is told; its providers in Placement."""
    plenty = {each: Inventory(total=10_000_000, max_unit=10_000_000) for each in ("VCPU", "MEMORY_MB", "DISK_GB")}
    slots = {Generation.SEV: SlotTotal({"configuration": 10 * CLAIMS})}
    tree = (await OwnTree(placement, name).establish(HostResources(root=plenty, slots=slots))).tree
    assert tree is not None

    async def build(_: RequestContext, __: schema.BuildArguments) -> JsonValue:
        return None

    consumed = asyncio.Event()
    server = RpcServer(
        broker,
        queue=topology.work_queue(name, delivery_limit=5),
        methods=(Method(name="build_and_run_instance", arguments=schema.BuildArguments, handler=build),),
        max_message_bytes=_MAX_BYTES,
        concurrency=32,
        handler_timeout=30,
        stop_timeout=5,
        on_change=lambda _: consumed.set(),
    )
    task = asyncio.create_task(server.run(), name=name)
    try:
        async with asyncio.timeout(_SECONDS):
            await consumed.wait()
        yield frozenset(tree.providers)
    finally:
        task.cancel()
        await asyncio.wait({task})
        for provider in reversed(tree.providers):
            await placement.delete_provider(provider)
