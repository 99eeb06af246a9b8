"""What a host with a thousand encrypted guests costs: libvirt's test driver, and the lab's real Placement.

The guests are libvirt's alone, so each is counted as one that somebody else started; the accounting is the daemon's.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from uuid import UUID, uuid4

import aiohttp

from sev_agent.compute.accounting import Accounting
from sev_agent.compute.inventory import HostResources
from sev_agent.compute.own_tree import OwnTree
from sev_agent.compute.record import RecordStore
from sev_agent.compute.slots import SlotTotal
from sev_agent.config import PlacementSection
from sev_agent.hypervisor.events import Lifecycle
from sev_agent.lab.accounts import service_user
from sev_agent.openstack.identity import KeystoneIdentity
from sev_agent.openstack.placement import Inventory, Placement
from sev_agent.sev.generation import Generation
from tests.bench.result import Result
from tests.bench.stage import Stage
from tests.libvirt_host import SEV, Host, domain_xml, running_host

GUESTS: Final = 1000
RECONCILE_GOAL_MS: Final = 200.0
EVENT_GOAL_MS: Final = 50.0

_COMPARISONS = 20
_EVENTS = 100
_BURST_SECONDS = 600.0
_ROOM = GUESTS + 100


@dataclass(frozen=True)
class _Traffic:
    """Requests to Placement by method; ``landed`` tells by ``time.monotonic`` when it answered a write."""

    requests: list[str] = field(default_factory=list)
    landed: "asyncio.Queue[float]" = field(default_factory=asyncio.Queue)

    def on_request(self, service: str, method: str, status: int, seconds: float) -> None:
        del status, seconds
        if service == "placement":
            self.requests.append(method)
            if method == "PUT":
                self.landed.put_nowait(time.monotonic())


@dataclass(frozen=True)
class _Crowd:
    """The host's accounting at work. ``stopped`` tells by ``time.monotonic`` when libvirt told of a stop."""

    accounting: Accounting
    libvirt: Host
    traffic: _Traffic
    stopped: "asyncio.Queue[float]" = field(default_factory=asyncio.Queue)


async def thousand_guests(stage: Stage) -> list[Result]:
    """A thousand starts at once, comparisons in which nothing changed, and single events among a thousand guests."""
    async with _crowd(stage) as crowd:
        await crowd.accounting.reconcile(_RESOURCES)
        uuids = [uuid4() for _ in range(GUESTS)]
        burst = await _burst(crowd, uuids)
        for _ in range(2):
            await crowd.accounting.reconcile(_RESOURCES)
        crowd.traffic.requests.clear()
        quiet = [await _comparison(crowd, thorough=False) for _ in range(_COMPARISONS)]
        reads = len(crowd.traffic.requests) / _COMPARISONS
        crowd.traffic.requests.clear()
        thorough = [await _comparison(crowd, thorough=True) for _ in range(_COMPARISONS)]
        assert set(crowd.traffic.requests) == {"GET"}, "a comparison in which nothing changed must write nothing"
        thorough_reads = len(crowd.traffic.requests) / _COMPARISONS
        events = [await _event(crowd, uuid) for uuid in uuids[:_EVENTS]]
    return [
        Result.of("scale.burst-of-1000", [burst], "s"),
        Result.of("scale.comparison", quiet, "ms", goal=RECONCILE_GOAL_MS),
        Result.of("scale.comparison-reads", [reads], "reads", floor=0, goal=1),
        Result.of("scale.thorough-comparison", thorough, "ms"),
        Result.of("scale.thorough-comparison-reads", [thorough_reads], "reads"),
        Result.of("scale.event-to-placement", events, "ms", goal=EVENT_GOAL_MS),
    ]


_RESOURCES: Final = HostResources(
    root={
        "VCPU": Inventory(total=2 * _ROOM, max_unit=_ROOM),
        "MEMORY_MB": Inventory(total=1024 * _ROOM, max_unit=1024),
        "DISK_GB": Inventory(total=_ROOM, max_unit=_ROOM),
    },
    slots={Generation.SEV: SlotTotal({"configuration": _ROOM})},
)


@contextlib.asynccontextmanager
async def _crowd(stage: Stage) -> AsyncIterator[_Crowd]:
    settings = PlacementSection(endpoint=stage.lab.placement_url)
    store = RecordStore(Path(stage.host.directory) / "scale")
    store.open()
    async with aiohttp.ClientSession() as session, running_host() as libvirt:
        assert await libvirt.next_change()
        identity = KeystoneIdentity(session, service_user(stage.lab.cloud))
        traffic = _Traffic()
        placement = Placement(session, identity, settings, on_request=traffic.on_request)
        accounting = Accounting(
            placement=placement,
            providers=OwnTree(placement, f"scale-{uuid4()}"),
            domains=libvirt.domains,
            store=store,
            settings=settings,
            in_flight=lambda _: False,
            on_seen=_ignore,
            may_write=_at_once,
        )
        crowd = _Crowd(accounting, libvirt, traffic)
        tasks = [asyncio.create_task(accounting.run()), asyncio.create_task(_pump(crowd))]
        try:
            yield crowd
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)


async def _burst(crowd: _Crowd, uuids: list[UUID]) -> float:
    """Seconds from the first start to the last one's allocation."""
    texts = [domain_xml(uuid, f"guest-{uuid}", security=SEV) for uuid in uuids]
    begun = time.monotonic()
    await crowd.libvirt.hypervisor.act(lambda connection: [connection.createXML(text) for text in texts])
    async with asyncio.timeout(_BURST_SECONDS):
        while sum(used for _, used in crowd.accounting.slots_used()) < len(uuids):
            await crowd.traffic.landed.get()
    return time.monotonic() - begun


async def _comparison(crowd: _Crowd, *, thorough: bool) -> float:
    """Milliseconds."""
    begun = time.monotonic()
    outcome = await crowd.accounting.reconcile(_RESOURCES, thorough=thorough)
    assert outcome.is_clean, outcome.findings()
    return (time.monotonic() - begun) * 1000


async def _event(crowd: _Crowd, uuid: UUID) -> float:
    """Milliseconds from libvirt's event that a guest has stopped to Placement's answer to the release."""
    while not crowd.traffic.landed.empty():
        crowd.traffic.landed.get_nowait()
    await crowd.libvirt.domains.destroy(uuid)
    received = await crowd.stopped.get()
    return (await crowd.traffic.landed.get() - received) * 1000


async def _pump(crowd: _Crowd) -> None:
    while True:
        event = await crowd.libvirt.events.get()
        crowd.accounting.mark(event.uuid)
        if event.event is Lifecycle.STOPPED:
            crowd.stopped.put_nowait(event.received)


async def _at_once() -> None:
    pass


async def _ignore(_uuid: UUID, _runs: bool) -> None:  # noqa: FBT001 - the callback's own
    pass
