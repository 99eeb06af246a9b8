"""A small cloud without guests: real Placement and RabbitMQ, and hosts that only take what they are told."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import aiohttp
import pytest
from pydantic import JsonValue

from sev_agent import schema
from sev_agent.compute.inventory import HostResources
from sev_agent.compute.own_tree import OwnTree
from sev_agent.compute.slots import SlotTotal
from sev_agent.config import ServiceSection
from sev_agent.messaging import topology
from sev_agent.messaging.answering import Method
from sev_agent.messaging.broker import Broker
from sev_agent.messaging.client import RpcClient
from sev_agent.messaging.envelope import Notification, RequestContext
from sev_agent.messaging.notifications import Notifier, subscribe
from sev_agent.messaging.server import RpcServer
from sev_agent.observe.health import Dependency, Health
from sev_agent.openstack.identity import NoIdentity
from sev_agent.openstack.placement import Inventory, Placement
from sev_agent.scheduler.aliveness import Aliveness
from sev_agent.scheduler.claims import Claims
from sev_agent.scheduler.explanation import Stage
from sev_agent.scheduler.fleet import Fleet
from sev_agent.scheduler.host_names import HostNames
from sev_agent.scheduler.metrics import SchedulerMetrics
from sev_agent.scheduler.options import Options
from sev_agent.scheduler.placement_watch import PlacementWatch
from sev_agent.scheduler.placing import Placing
from sev_agent.scheduler.requests import SchedulingRequests
from sev_agent.sev.generation import RESOURCE_CLASS, Generation
from tests.integration.conftest import open_placement
from tests.rabbitmq import RabbitNode
from tests.releases import release
from tests.requests import instance
from tests.running import PATIENCE, connected, running

OVERHEAD = 128
MAX_BYTES = 1024 * 1024

SAID = {"code": "hypervisor.no_slot", "message": "every slot is taken"}


@pytest.fixture(scope="session")
def schedulers_placement_url(services_environment: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Placement with no hosts but those of these tests."""
    with open_placement(services_environment, tmp_path_factory.mktemp("schedulers-placement")) as url:
        yield url


@pytest.fixture
async def placement(session: aiohttp.ClientSession, schedulers_placement_url: str) -> AsyncIterator[Placement]:
    placement = Placement(session, NoIdentity(), ServiceSection(endpoint=schedulers_placement_url))
    yield placement
    # Whatever a test left must not be a host, or a claim, of the next one.
    providers = await placement.providers()
    for provider in providers:
        _, consumers = await placement.provider_allocations(provider.uuid)
        for consumer in consumers:
            await release(placement, consumer)
    for provider in sorted(providers, key=lambda provider: provider.parent is None):
        await placement.delete_provider(provider.uuid)


@pytest.fixture
async def broker(node: RabbitNode) -> AsyncIterator[Broker]:
    async with connected(node.url) as broker:
        channel = await (await broker.link()).channel()
        queue = await topology.scheduler_queue(delivery_limit=5).declare(channel, timeout=5)
        await queue.purge()
        await channel.close()
        yield broker


@pytest.fixture
def client(broker: Broker) -> RpcClient:
    return RpcClient(broker, max_message_bytes=MAX_BYTES)


@dataclass
class FakeHost:
    """A compute host that takes builds, and does nothing with them. ``rp`` is the root of its resource providers.

    ``told`` counts the builds that it was told of.
    """

    name: str
    rp: UUID
    slots: int
    builds: "asyncio.Queue[schema.BuildArguments]" = field(default_factory=asyncio.Queue)
    told: int = 0

    async def build(self, _: RequestContext, arguments: schema.BuildArguments) -> JsonValue:
        self.told += 1
        self.builds.put_nowait(arguments)
        return None

    async def next(self) -> schema.BuildArguments:
        """The next build that it is told of."""
        async with asyncio.timeout(PATIENCE):
            return await self.builds.get()


def said(*hosts: FakeHost) -> list[dict[str, str]]:
    """What each of ``hosts`` said of a build that failed there."""
    return [{"host": host.name, **SAID} for host in hosts]


async def told(total: int, *hosts: FakeHost) -> list[int]:
    """How many builds each host was told of, once they are ``total`` in all: the broker hands them out in its time."""
    async with asyncio.timeout(PATIENCE):
        while sum(host.told for host in hosts) < total:  # noqa: ASYNC110 - any of several may be told
            await asyncio.sleep(0.01)
    return [host.told for host in hosts]


def small(
    slots: int, *, memory_mb: int = 64_000, generations: Iterable[Generation] = (Generation.SEV,)
) -> HostResources:
    """What a host has to give: room for many guests, and few slots."""
    root = {
        "VCPU": Inventory(total=16, max_unit=16, allocation_ratio=16.0),
        "MEMORY_MB": Inventory(total=memory_mb, max_unit=memory_mb),
        "DISK_GB": Inventory(total=1000, max_unit=1000),
    }
    return HostResources(
        hostname="ignored", root=root, slots={each: SlotTotal({"configuration": slots}) for each in generations}
    )


MakeHost = Callable[..., Awaitable[FakeHost]]


@pytest.fixture
async def make_host(placement: Placement, broker: Broker) -> AsyncIterator[MakeHost]:
    """Makes a host that is registered, and alive unless told otherwise."""
    async with contextlib.AsyncExitStack() as stack:

        async def make(
            slots: int = 2, *, name: str | None = None, alive: bool = True, registered: bool = True, **resources: Any
        ) -> FakeHost:
            host = FakeHost(name or f"host-{uuid4().hex[:6]}", uuid4(), slots)
            if registered:
                tree = (await OwnTree(placement, host.name).establish(small(slots, **resources))).tree
                assert tree is not None
                host.rp = tree.root
            consumed = asyncio.Event()
            server = RpcServer(
                broker,
                queue=topology.work_queue(host.name, delivery_limit=5),
                methods=(Method(name="build_and_run_instance", arguments=schema.BuildArguments, handler=host.build),),
                max_message_bytes=MAX_BYTES,
                concurrency=16,
                handler_timeout=30,
                stop_timeout=5,
                on_change=lambda _: consumed.set(),
            )
            if alive:
                await stack.enter_async_context(running(server))
                async with asyncio.timeout(30):
                    await consumed.wait()
            return host

        yield make


@dataclass
class Decider:
    """One scheduler in this process, without its queue. ``claims`` are the outcomes of its attempts to claim."""

    requests: SchedulingRequests
    placing: Placing
    watch: PlacementWatch
    health: Health
    options: Options
    claims: list[str]

    async def schedule(self, given: schema.Instance | None = None, **arguments: Any) -> schema.Instance:
        """Have a request for an instance decided."""
        given = given or instance()
        asked = {"instance": given.model_dump(mode="json"), **arguments}
        context = RequestContext(project_id=given.project_id)
        if "tried" in asked:
            await self.requests.reschedule(context, schema.parse(schema.RescheduleArguments, asked))
        else:
            await self.requests.schedule(context, schema.parse(schema.ScheduleArguments, asked))
        return given


MakeDecider = Callable[..., "contextlib.AbstractAsyncContextManager[Decider]"]


@pytest.fixture
def make_decider(placement: Placement, broker: Broker, client: RpcClient) -> MakeDecider:
    """Makes a scheduler's deciding part, with parts replaced by those that are given."""

    @contextlib.asynccontextmanager
    async def make(**parts: Any) -> AsyncIterator[Decider]:
        asked = parts.pop("placement", placement)
        patience = parts.pop("patience", 20.0)
        health = Health((Dependency.BROKER, Dependency.PLACEMENT))
        watch = PlacementWatch(asked, health)
        names, aliveness, outcomes = HostNames(asked), Aliveness(client), list[str]()
        given: dict[str, Any] = {
            "options": Options(asked, names, limit=100),
            "names": names,
            "claims": Claims(asked),
            "aliveness": aliveness,
            "fleet": Fleet(asked, aliveness, max_candidates=100),
            "client": client,
            "strategy": "spread",
            "on_claim": outcomes.append,
        } | parts
        placing = Placing(**given)
        requests = SchedulingRequests(
            placing=placing,
            watch=watch,
            client=given["client"],
            notifier=Notifier(broker, publisher_id="sev_scheduler.tests"),
            metrics=SchedulerMetrics(),
            overhead_mb=OVERHEAD,
            patience=patience,
        )
        async with running(watch):
            yield Decider(requests, placing, watch, health, given["options"], outcomes)

    return make


@pytest.fixture
async def decider(make_decider: MakeDecider) -> AsyncIterator[Decider]:
    async with make_decider() as deciding:
        assert await deciding.watch.wait_up(30)
        yield deciding


class Ear:
    """Hears what schedulers tell, and keeps it by instance."""

    def __init__(self) -> None:
        self.heard: list[Notification] = []
        self._arrived = asyncio.Event()

    def hear(self, notification: Notification) -> None:
        self.heard.append(notification)
        self._arrived.set()

    def of(self, uuid: UUID) -> list[Notification]:
        return [heard for heard in self.heard if heard.payload["instance_uuid"] == str(uuid)]

    async def outcome(self, uuid: UUID | None = None) -> Notification:
        """The first ``end`` or ``error`` of ``uuid``, or of anyone."""
        async with asyncio.timeout(PATIENCE):
            while True:
                for heard in self.heard if uuid is None else self.of(uuid):
                    if heard.event_type.rsplit(".", 1)[1] in {"end", "error"}:
                        return heard
                self._arrived.clear()
                await self._arrived.wait()


@pytest.fixture
async def ear(broker: Broker) -> AsyncIterator[Ear]:
    ear = Ear()

    async def listen(heard: AsyncIterator[Notification]) -> None:
        async for notification in heard:
            if notification.event_type.startswith("sev.instance.schedule."):
                ear.hear(notification)

    async with subscribe(broker, max_message_bytes=MAX_BYTES) as heard:
        task = asyncio.create_task(listen(heard), name="ear")
        yield ear
        task.cancel()
        await asyncio.wait({task})


async def slots_used(placement: Placement, host: FakeHost) -> int:
    """``mem_encryption_used_num`` of a host, of all its generations."""
    used = [await placement.usages(provider.uuid) for provider in await placement.tree(host.rp)]
    return sum(amounts.get(RESOURCE_CLASS, 0) for amounts in used)


def fields(notification: Notification) -> dict[str, Any]:
    return dict(notification.payload)


def counted(*hosts: int) -> dict[str, int]:
    """The counts of each stage; the last one given is that of all that follow."""
    return {stage.value: hosts[min(n, len(hosts) - 1)] for n, stage in enumerate(Stage)}
