"""What a host with a thousand encrypted guests costs: libvirt's test driver, and the lab's real Placement.

Nine in ten are instances of the daemon's, each with its record; the others somebody else started. Broker and builds
apart, everything from libvirt's event to the record and to Placement is the daemon's own.
"""

import asyncio
import contextlib
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from uuid import UUID, uuid4

import aiohttp

from sev_agent.compute.inventory import HostResources
from sev_agent.compute.record import State
from sev_agent.compute.slots import SlotTotal
from sev_agent.config import PlacementSection
from sev_agent.hypervisor.events import Lifecycle, LifecycleEvent
from sev_agent.lab.accounts import service_user
from sev_agent.openstack.identity import KeystoneIdentity
from sev_agent.openstack.placement import Inventory, Placement
from sev_agent.sev.generation import Generation
from tests.bench.result import Result
from tests.bench.stage import Stage
from tests.daemon_parts import Daemon
from tests.libvirt_host import SEV, Host, agent_metadata, domain_xml, running_host
from tests.requests import record

GUESTS: Final = 1000
RECONCILE_GOAL_MS: Final = 200.0
EVENT_GOAL_MS: Final = 50.0

_UNMANAGED = GUESTS // 10
_COMPARISONS = 20
_EVENTS = 100
_BURST_SECONDS = 600.0
_POLL_SECONDS = 0.01
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
    """The daemon's parts at work. ``stopped`` tells by ``time.monotonic`` when libvirt told of a stop."""

    daemon: Daemon
    libvirt: Host
    traffic: _Traffic
    stopped: "asyncio.Queue[float]"


async def thousand_guests(stage: Stage) -> list[Result]:
    """A thousand starts at once, comparisons in which nothing changed, and single events among a thousand guests."""
    async with _crowd(stage) as crowd:
        accounting = crowd.daemon.accounting
        await accounting.reconcile(_RESOURCES)
        alone = await _calls_of_a_start(crowd)
        uuids = [uuid4() for _ in range(GUESTS)]
        burst = await _burst(crowd, uuids)
        beside = await _calls_of_a_start(crowd)
        for _ in range(2):
            await accounting.reconcile(_RESOURCES)
        crowd.traffic.requests.clear()
        quiet = [await _comparison(crowd, thorough=False) for _ in range(_COMPARISONS)]
        reads = len(crowd.traffic.requests) / _COMPARISONS
        crowd.traffic.requests.clear()
        thorough = [await _comparison(crowd, thorough=True) for _ in range(_COMPARISONS)]
        assert set(crowd.traffic.requests) == {"GET"}, "a comparison in which nothing changed must write nothing"
        thorough_reads = len(crowd.traffic.requests) / _COMPARISONS
        events = [await _event(crowd, uuid) for uuid in uuids[-_UNMANAGED - _EVENTS // 2 :][:_EVENTS]]
    return [
        Result.of("scale.burst-of-1000", [burst], "s"),
        Result.of("scale.comparison", quiet, "ms", goal=RECONCILE_GOAL_MS),
        Result.of("scale.comparison-reads", [reads], "reads", floor=0, goal=1),
        Result.of("scale.thorough-comparison", thorough, "ms"),
        Result.of("scale.thorough-comparison-reads", [thorough_reads], "reads"),
        Result.of("scale.event-to-placement", events, "ms", goal=EVENT_GOAL_MS),
        Result.of("scale.requests-of-a-start", [beside], "calls", floor=alone, goal=alone),
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
    async with contextlib.AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=stage.host.directory)))
        boot_id = directory / "platform/proc/sys/kernel/random/boot_id"
        boot_id.parent.mkdir(parents=True)
        boot_id.write_text("first\n")
        session = await stack.enter_async_context(aiohttp.ClientSession())
        libvirt = await stack.enter_async_context(running_host())
        assert await libvirt.next_change()
        traffic = _Traffic()
        identity = KeystoneIdentity(session, service_user(stage.lab.cloud))
        placement = Placement(session, identity, settings, on_request=traffic.on_request)
        stopped: asyncio.Queue[float] = asyncio.Queue()

        def note(event: LifecycleEvent) -> None:
            if event.event is Lifecycle.STOPPED:
                stopped.put_nowait(event.received)

        daemon = Daemon(directory, f"scale-{uuid4()}", libvirt, placement, settings, on_event=note)
        stack.push_async_callback(daemon.end)
        yield _Crowd(daemon, libvirt, traffic, stopped)


async def _burst(crowd: _Crowd, uuids: list[UUID]) -> float:
    """Seconds from the first start to the last one's allocation; the last of ``uuids`` are nobody's instances."""
    managed = set(uuids[:-_UNMANAGED])
    for uuid in managed:
        await asyncio.to_thread(crowd.daemon.store.save, record(State.STOPPED, uuid))
    texts = [
        domain_xml(uuid, f"guest-{uuid}", security=SEV, extra=agent_metadata(uuid) if uuid in managed else "")
        for uuid in uuids
    ]
    begun = time.monotonic()
    await crowd.libvirt.hypervisor.act(lambda connection: [connection.createXML(text) for text in texts])
    await _slots_used(crowd, len(uuids))
    return time.monotonic() - begun


async def _slots_used(crowd: _Crowd, count: int) -> None:
    async with asyncio.timeout(_BURST_SECONDS):
        while sum(used for _, used in crowd.daemon.accounting.slots_used()) != count:  # noqa: ASYNC110 - rings no bell
            await asyncio.sleep(_POLL_SECONDS)


async def _calls_of_a_start(crowd: _Crowd) -> int:
    """Requests to Placement that one more guest costs, which comes and goes."""
    before = sum(used for _, used in crowd.daemon.accounting.slots_used())
    crowd.traffic.requests.clear()
    uuid = uuid4()
    text = domain_xml(uuid, f"guest-{uuid}", security=SEV)
    await crowd.libvirt.hypervisor.act(lambda connection: connection.createXML(text) and None)
    await _slots_used(crowd, int(before) + 1)
    await crowd.libvirt.domains.destroy(uuid)
    await crowd.stopped.get()
    await _slots_used(crowd, int(before))
    return len(crowd.traffic.requests)


async def _comparison(crowd: _Crowd, *, thorough: bool) -> float:
    """Milliseconds."""
    begun = time.monotonic()
    outcome = await crowd.daemon.accounting.reconcile(_RESOURCES, thorough=thorough)
    assert outcome.is_clean, outcome.findings()
    return (time.monotonic() - begun) * 1000


async def _event(crowd: _Crowd, uuid: UUID) -> float:
    """Milliseconds from libvirt's event that a guest has stopped to Placement's answer to the release."""
    while not crowd.traffic.landed.empty():
        crowd.traffic.landed.get_nowait()
    await crowd.libvirt.domains.destroy(uuid)
    received = await crowd.stopped.get()
    return (await crowd.traffic.landed.get() - received) * 1000
