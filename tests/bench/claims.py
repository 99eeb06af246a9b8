"""How many requests a scheduler places in a second, beside the bare claims that Placement takes of as many clients."""

import asyncio
import contextlib
import statistics
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from uuid import UUID

import aiohttp
from pydantic import JsonValue

from sev_agent import schema
from sev_agent.cli.remote import connected
from sev_agent.compute.inventory import HostResources
from sev_agent.compute.own_tree import OwnTree
from sev_agent.compute.slots import SlotTotal
from sev_agent.config import AgentConfig, load
from sev_agent.messaging import topology
from sev_agent.messaging.broker import Broker
from sev_agent.messaging.client import RpcClient
from sev_agent.messaging.envelope import RequestContext
from sev_agent.messaging.notifications import subscribe
from sev_agent.messaging.server import Method, RpcServer
from sev_agent.openstack.identity import identify
from sev_agent.openstack.placement import Allocation, Inventory, Placement
from sev_agent.scheduler.demand import SLOT_GROUP, Request
from sev_agent.schema import ScheduleArguments, parse
from sev_agent.sev.generation import Generation
from tests.bench import guests
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
    """Requests through one scheduler until every claim is made, against the same claims made directly, by turns."""
    raw: list[float] = []
    scheduled: list[float] = []
    async with _scene(stage) as scene:
        await scene.timed(scene.schedule, scene.requests(CLIENTS))
        for _ in range(RUNS):
            claims = scene.requests(CLAIMS)
            raw.append(await scene.timed(scene.claim, claims))
            asked = scene.requests(CLAIMS)
            scheduled.append(await scene.timed(scene.schedule, asked))
        resident = resident_mb(scene.scheduler)
    floor = statistics.median(raw)
    ratios = [ours / theirs for ours, theirs in zip(scheduled, raw, strict=True)]
    ratio = statistics.median(scheduled) / floor
    return [
        Result.of("claims.raw", raw, "ms"),
        Result.of("claims.scheduled", scheduled, "ms", floor=floor),
        Result.of("claims.ratio", ratios, "x", value=ratio, floor=1, goal=RATIO_GOAL),
        Result.of("claims.scheduler-resident", [resident], "MiB", goal=RESIDENT_GOAL_MB),
    ]


@dataclass(slots=True, kw_only=True)
class _Scene:
    """A scheduler process, hosts that only take what they are told, and Placement beside them."""

    placement: Placement
    broker: Broker
    client: RpcClient
    stage: Stage
    overhead_mb: int
    scheduler: int

    def requests(self, count: int) -> list[ScheduleArguments]:
        return [parse(ScheduleArguments, {"instance": guests.request(self.stage.image.id)}) for _ in range(count)]

    async def timed(
        self, work: Callable[[Sequence[ScheduleArguments]], Awaitable[None]], asked: Sequence[ScheduleArguments]
    ) -> float:
        """Milliseconds for each of ``asked``; what they hold is given back, off the clock."""
        begun = time.monotonic()
        await work(asked)
        seconds = time.monotonic() - begun
        for each in asked:
            await release(self.placement, each.instance.uuid)
        return seconds / len(asked) * 1000

    async def claim(self, asked: Sequence[ScheduleArguments]) -> None:
        demand = Request.of(asked[0], overhead_mb=self.overhead_mb).demand
        found = (await self.placement.allocation_candidates(demand.groups, limit=1000)).candidates
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

    async def schedule(self, asked: Sequence[ScheduleArguments]) -> None:
        async def one(number: int) -> None:
            arguments = {"instance": asked[number].instance.model_dump(mode="json")}
            await self.client.cast("schedule_instance", arguments, queue=topology.SCHEDULER_QUEUE)

        left = {each.instance.uuid for each in asked}
        async with asyncio.timeout(_SECONDS), subscribe(self.broker, max_message_bytes=_MAX_BYTES) as heard:
            await _side_by_side(one, len(asked))
            while left:
                told = await anext(heard)
                assert told.event_type != "sev.instance.schedule.error", told.payload
                if told.event_type == "sev.instance.schedule.end":
                    left.discard(UUID(str(told.payload["instance_uuid"])))


async def _side_by_side(work: Callable[[int], Awaitable[None]], count: int) -> None:
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
        for number in range(_HOSTS):
            await stack.enter_async_context(_host(f"bench-{number}", placement, remote.broker))
        scheduler = await stack.enter_async_context(_scheduler(stage, config, remote.client))
        yield _Scene(
            placement=placement,
            broker=remote.broker,
            client=remote.client,
            stage=stage,
            overhead_mb=config.placement.guest_overhead_mb,
            scheduler=scheduler,
        )


@contextlib.asynccontextmanager
async def _host(name: str, placement: Placement, broker: Broker) -> AsyncIterator[None]:
    """A host with room for everything, that does nothing with what it is told."""
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
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})
        for provider in reversed(tree.providers):
            await placement.delete_provider(provider)


@contextlib.asynccontextmanager
async def _scheduler(stage: Stage, config: AgentConfig, client: RpcClient) -> AsyncIterator[int]:
    """The process, once it takes requests; its number."""
    path = stage.host.directory / "bench-scheduler.toml"
    path.write_text(_configuration(config))
    path.chmod(0o600)
    command = (str(Path(sys.executable).with_name("sev-agent")), "scheduler", "--config", str(path))
    with path.with_suffix(".log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(*command, stdout=log, stderr=log)
    try:
        async with asyncio.timeout(_SECONDS):
            while not await client.consumer_count(topology.SCHEDULER_QUEUE):  # noqa: ASYNC110 - the broker tells nobody
                await asyncio.sleep(0.05)
        yield process.pid
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.wait()


def _configuration(config: AgentConfig) -> str:
    """What the host's daemon has for the same services."""
    auth = config.auth
    lines = [
        "[scheduler]",
        'name = "bench"',
        "[messaging]",
        f'url = "{config.messaging.url.get_secret_value()}"',
        "[auth]",
        f'type = "{auth.type}"',
        *([f'auth_url = "{auth.auth_url}"'] if auth.auth_url else []),
        f'username = "{auth.username}"',
        f'password = "{auth.password.get_secret_value()}"',
        f'project_name = "{auth.project_name}"',
        "[placement]",
        f"guest_overhead_mb = {config.placement.guest_overhead_mb}",
        *([f'endpoint = "{config.placement.endpoint}"'] if config.placement.endpoint else []),
        "[http]",
        "port = 0",
        "[log]",
        'format = "json"',
    ]
    return "\n".join(lines) + "\n"
