"""A host that counts: a real Placement, libvirt's test driver, and the parts between them."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID, uuid4

import aiohttp
import pytest

from sev_agent.compute.accounting import Accounting
from sev_agent.compute.drift import Reconciliation
from sev_agent.compute.inventory import HostResources
from sev_agent.compute.nova_tree import NovaTree
from sev_agent.compute.own_tree import OwnTree
from sev_agent.compute.record import State
from sev_agent.compute.record_store import RecordStore
from sev_agent.compute.slots import SlotTotal
from sev_agent.config import PlacementSection
from sev_agent.hypervisor.events import LifecycleEvent
from sev_agent.openstack.exchange import ServiceUnavailable
from sev_agent.openstack.identity import NoIdentity
from sev_agent.openstack.placement import Allocation, Inventory, Placement, Provider, Resources
from sev_agent.sev.generation import RESOURCE_CLASS, Generation
from tests.journal import opened
from tests.libvirt_host import PATIENCE, SEV, Host, agent_metadata, domain_xml, running_host
from tests.requests import record

SLOTS = 2
DEFAULT = (Generation.SEV,)


def resources(slots: int = SLOTS, disk: int = 100, *, generations: Iterable[Generation] = DEFAULT) -> HostResources:
    """What a small host has to give."""
    root = {
        "VCPU": Inventory(total=8, max_unit=8, allocation_ratio=4.0),
        "MEMORY_MB": Inventory(total=4096, reserved=512, max_unit=4096),
        "DISK_GB": Inventory(total=disk, max_unit=disk),
    }
    return HostResources(root=root, slots={each: SlotTotal({"configuration": slots}) for each in generations})


async def _takes_note(_: UUID, __: bool) -> None:  # noqa: FBT001 - the callback's own
    """The record of a guest is written at once."""


@dataclass
class CountingHost:
    """One host with its accounting. ``requests`` are those to Placement; ``seen`` is what was observed of guests.

    ``on_seen`` comes before that is noted, and may take its time, or fail.
    """

    name: str
    accounting: Accounting
    libvirt: Host
    store: RecordStore
    placement: Placement
    requests: list[tuple[str, int]]
    in_flight: set[UUID] = field(default_factory=set)
    seen: dict[UUID, bool] = field(default_factory=dict)
    on_seen: Callable[[UUID, bool], Awaitable[None]] = _takes_note

    async def reconcile(self, given: HostResources | None = None, **how: bool) -> Reconciliation:
        return await self.accounting.reconcile(given or resources(), **how)

    async def built(self, uuid: UUID | None = None) -> UUID:
        """An instance as a build leaves it: claimed, running, recorded."""
        built = record(State.BUILDING, uuid)
        self.in_flight.add(built.uuid)
        await self.accounting.claim(built)
        await self.start_guest(built.uuid)
        self.store.save(built.with_(state=State.ACTIVE))
        self.in_flight.discard(built.uuid)
        self.accounting.mark(built.uuid)
        return built.uuid

    def lose_answer(self, monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
        """Have Placement carry out the next write of an allocation without an answer; set when that has happened."""
        put, lost = self.placement.put_allocation, asyncio.Event()

        async def put_and_lose(consumer: UUID, allocation: Allocation) -> None:
            await put(consumer, allocation)
            if not lost.is_set():
                lost.set()
                raise ServiceUnavailable("did not answer in time", service="placement", url="http://127.0.0.1:1")

        monkeypatch.setattr(self.placement, "put_allocation", put_and_lose)
        return lost

    async def requests_of(self, operation: Callable[[], object]) -> list[str]:
        """The methods of the requests to Placement that ``operation`` makes."""
        self.requests.clear()
        result = operation()
        if asyncio.iscoroutine(result):
            await result
        return [method for method, _ in self.requests]

    async def start_guest(
        self, uuid: UUID | None = None, *, ours: bool = True, security: str = SEV, metadata: str = ""
    ) -> UUID:
        uuid = uuid or uuid4()
        metadata = agent_metadata(uuid) if ours else metadata
        await self.libvirt.domains.start(
            await self.libvirt.domains.define(domain_xml(uuid, f"guest-{uuid}", security=security, extra=metadata))
        )
        return uuid

    async def held(self, uuid: UUID) -> dict[str, int]:
        """What ``uuid`` holds in Placement, of all providers together."""
        allocation = await self.placement.allocation(uuid)
        return {} if allocation is None else merged(allocation.resources)

    async def eventually_holds(self, uuid: UUID, wanted: Mapping[str, int]) -> None:
        """Events reach Placement by themselves; what is asked here is only whether they have."""
        async with asyncio.timeout(PATIENCE):
            while await self.held(uuid) != wanted:  # noqa: ASYNC110 - Placement rings no bell
                await asyncio.sleep(0.02)


async def registered(host: CountingHost) -> tuple[Provider, Provider]:
    """The root and the child, once Placement has them and a comparison found nothing to do."""
    await host.reconcile()
    assert (await host.reconcile()).is_clean
    root = await host.placement.find_provider(host.name)
    child = await host.placement.find_provider(f"{host.name}_amd_sev")
    assert root is not None
    assert child is not None
    return root, child


def merged(by_provider: Mapping[UUID, Resources]) -> dict[str, int]:
    return {name: amount for amounts in by_provider.values() for name, amount in amounts.items()}


OVERHEAD = PlacementSection().guest_overhead_mb

FULL_SIZE = {"VCPU": 2, "MEMORY_MB": 64 + OVERHEAD, "DISK_GB": 1, RESOURCE_CLASS: 1}
"""What a running guest of ``tests.requests`` holds."""

UNMANAGED_SIZE = {"VCPU": 2, "MEMORY_MB": 64 + OVERHEAD, RESOURCE_CLASS: 1}
"""What an encrypted guest of ``tests.libvirt_host`` holds that this agent did not build."""


MakeHost = Callable[..., Awaitable[CountingHost]]
"""Makes a host of a name, with settings of the section ``placement``."""


async def at_once() -> None:
    """The right to count of a host whose name nobody else has."""


async def _pump(events: "asyncio.Queue[LifecycleEvent]", accounting: Accounting) -> None:
    while True:
        accounting.mark((await events.get()).uuid)


@pytest.fixture
async def hosts(placement_url: str, session: aiohttp.ClientSession, tmp_path: Path) -> AsyncIterator[MakeHost]:
    """Makes hosts. Nothing is registered yet. Events of libvirt mark, as in the daemon."""
    async with contextlib.AsyncExitStack() as closing:

        async def make(name: str | None = None, **settings: object) -> CountingHost:
            section = PlacementSection.model_validate({"endpoint": placement_url} | settings)
            made = _counting(name or f"host-{uuid4()}", section, session, tmp_path / str(uuid4()))
            return await closing.enter_async_context(made)

        yield make


@pytest.fixture
async def host(hosts: MakeHost) -> CountingHost:
    """A host without Nova."""
    return await hosts()


@contextlib.asynccontextmanager
async def _counting(
    name: str, settings: PlacementSection, session: aiohttp.ClientSession, directory: Path
) -> AsyncIterator[CountingHost]:
    requests: list[tuple[str, int]] = []
    placement = Placement(
        session, NoIdentity(), settings, on_request=lambda _, method, status, __: requests.append((method, status))
    )
    store = opened(directory)
    in_flight: set[UUID] = set()
    seen: dict[UUID, bool] = {}

    async def on_seen(uuid: UUID, runs: bool) -> None:  # noqa: FBT001 - the callback's own
        await made.on_seen(uuid, runs)
        seen[uuid] = runs

    beside_nova = settings.mode == "beside-nova"
    async with running_host() as libvirt:
        assert await libvirt.next_change()
        accounting = Accounting(
            placement=placement,
            providers=NovaTree(placement, name) if beside_nova else OwnTree(placement, name),
            domains=libvirt.domains,
            store=store,
            settings=settings,
            in_flight=in_flight.__contains__,
            on_seen=on_seen,
            may_write=at_once,
        )
        made = CountingHost(name, accounting, libvirt, store, placement, requests, in_flight, seen)
        tasks = [asyncio.create_task(accounting.run()), asyncio.create_task(_pump(libvirt.events, accounting))]
        yield made
        for task in tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
