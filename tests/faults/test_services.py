"""Services that are killed, stopped or cut off in the middle of work: nothing is lost, counted wrong or left behind."""

import asyncio
import dataclasses
import json
import os
import re
import signal
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from uuid import UUID

import pytest

from sev_agent.domain.identity import domain_name
from tests.e2e.waiting import eventually
from tests.faults.conftest import World
from tests.faults.services import Leaned

pytestmark = pytest.mark.asyncio(loop_scope="session")

AWAY_SECONDS = 1.0
_PATIENCE = 60.0
_CLAIM = b"PUT /allocations/"
"""How a request begins by which the daemon takes or gives back what a guest needs."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that breaks, and how it is mended."""

    strike: Callable[[World], Awaitable[None]]
    mend: Callable[[World], Awaitable[None]]


def _killed(service: Leaned) -> Fault:
    return Fault(lambda world: world.services.kill(service), lambda world: world.services.start(service))


def _stopped(service: Leaned) -> Fault:
    return Fault(lambda world: world.services.freeze(service), lambda world: world.services.thaw(service))


def _cut(*services: Leaned) -> Fault:
    async def cut(world: World) -> None:
        for service in services:
            world.proxies.before(service).cut()

    async def nothing(world: World) -> None:
        pass

    return Fault(cut, nothing)


FAULTS: Mapping[str, Fault] = {
    "libvirtd killed": _killed(Leaned.LIBVIRT),
    "libvirtd stopped": _stopped(Leaned.LIBVIRT),
    "RabbitMQ killed": _killed(Leaned.BROKER),
    "RabbitMQ stopped": _stopped(Leaned.BROKER),
    "Placement killed": _killed(Leaned.PLACEMENT),
    "Placement stopped": _stopped(Leaned.PLACEMENT),
    "connections to RabbitMQ cut": _cut(Leaned.BROKER),
    "connections to Placement cut": _cut(Leaned.PLACEMENT),
    "all connections cut": _cut(Leaned.BROKER, Leaned.PLACEMENT, Leaned.KEYSTONE, Leaned.GLANCE),
}


@pytest.fixture(params=FAULTS)
def fault(request: pytest.FixtureRequest) -> Fault:
    return FAULTS[request.param]


async def test_nothing_breaks(world: World) -> None:
    """Without a fault the invariants hold, of a guest that runs, of one that failed, and of one that is deleted."""
    await world.have()
    await world.build()
    await world.begin(image__id="00000000-0000-4000-8000-000000000000")
    gone = await world.build()
    await world.delete(gone)
    states = await world.hold()
    assert sorted(states.values()) == ["active", "deleted", "error"]


@dataclass(frozen=True, slots=True)
class Moment:
    """A moment of a build. ``prepare`` comes before the requests; ``reached`` returns when a build is there."""

    prepare: Callable[[World], None]
    reached: Callable[[World, list[UUID]], Awaitable[None]]


def _to_claim(world: World) -> None:
    world.proxies.placement.freeze_at(_CLAIM)


async def _is_claiming(world: World, begun: list[UUID]) -> None:
    """All builds are in the journal, and what they have to ask of Placement will not arrive before the fault."""
    async with asyncio.timeout(_PATIENCE):
        await world.proxies.placement.sprung.wait()
    await world.recorded()


async def _is_starting(world: World, begun: list[UUID]) -> None:
    """A build has all files of its guest, and is not over; where all were too quick, one more is begun."""

    async def stage() -> str:
        return await asyncio.to_thread(_stage, world, begun)

    for _ in range(4):
        if await eventually(stage, within=_PATIENCE, what="a build starts its guest", every=0.01) == "starting":
            return
        begun.append(await world.begin())
    raise AssertionError("no build was seen at its start")


def _stage(world: World, begun: list[UUID]) -> str:
    """Where the builds are: a guest of theirs is about to start, all are over, or neither yet."""
    building = [uuid for uuid in begun if not _is_over(world, uuid)]
    if not building:
        return "over"
    return "starting" if any(world.cloud.files(uuid).nvram.exists() for uuid in building) else ""


def _is_over(world: World, uuid: UUID) -> bool:
    """Whether a build has ended; one whose request is not in the journal yet has not."""
    record = world.cloud.files(uuid).record
    return record.exists() and json.loads(record.read_text())["state"] != "building"


def _nothing(world: World) -> None:
    pass


MOMENTS = (Moment(_to_claim, _is_claiming), Moment(_nothing, _is_starting))


async def test_during_builds(world: World, fault: Fault) -> None:
    """A fault while a build claims, or starts its guest, among other work: each ends as asked, or in its error."""
    await world.have()
    for moment in MOMENTS:
        doomed, stopping, rebooting = await asyncio.gather(*(world.build() for _ in range(3)))
        moment.prepare(world)
        begun = [await world.begin() for _ in range(2)]
        await world.delete(doomed)
        await world.power("stop_instance", stopping, "stopped")
        await world.power("reboot_instance", rebooting, "active", reboot_type="HARD")
        await moment.reached(world, begun)
        await _strike(world, fault)
        world.note()
        await world.hold()
        await world.delete(*begun, stopping, rebooting)
        await world.hold()


async def test_during_reconciliations(world: World, fault: Fault) -> None:
    """A fault in the middle of a comparison, which is just repairing something: in the end everything is repaired."""
    await world.have(reconciler__interval=1, reconciler__jitter=0)
    guests = [await world.build() for _ in range(3)]
    world.proxies.placement.freeze_at(_CLAIM)
    for uuid in guests:
        await _forget(world, uuid)
    # No guest changes, so this is the comparison's; it waits for an answer that does not come before the fault.
    async with asyncio.timeout(_PATIENCE):
        await world.proxies.placement.sprung.wait()
    await _strike(world, fault)
    world.note()
    await world.hold()


async def test_start_that_libvirt_lost(world: World) -> None:
    """A domain that a killed libvirtd left half started blocks nothing but what is asked of itself."""
    await world.have()
    lost, other = await world.build(), await world.build()
    await world.services.kill(Leaned.LIBVIRT)
    status = world.cloud.host.directory / f"run/qemu/{domain_name(lost)}.xml"
    for process in world.cloud.processes(lost):
        os.kill(process, signal.SIGKILL)
    status.write_text(_half_started(status.read_text()))
    await world.cloud.supervisor.start(world.cloud.service(f"{world.cloud.host.name}-libvirtd"))
    world.note()

    await world.works()
    await world.power("reboot_instance", other, "active", reboot_type="HARD")
    await world.build()
    await world.delete(lost)

    await world.services.kill(Leaned.LIBVIRT)
    await world.services.start(Leaned.LIBVIRT)
    await world.hold()


def _half_started(status: str) -> str:
    """A running domain's file as libvirtd has it on the disk before it has QEMU's pid."""
    status, count = re.subn(
        r"<domstatus state='running' reason='booted' pid='\d+'>",
        "<domstatus state='paused' reason='starting up' pid='0'><job type='none' async='start' flags='0x0'/>",
        status,
    )
    assert count == 1
    return status


async def _strike(world: World, fault: Fault) -> None:
    await fault.strike(world)
    await asyncio.sleep(AWAY_SECONDS)
    await fault.mend(world)
    await world.heal()


async def _forget(world: World, uuid: UUID) -> None:
    """Take a guest's allocation away, as an operator's mistake would."""
    held = await world.cloud.placement.allocation(uuid)
    assert held is not None
    await world.cloud.placement.put_allocation(uuid, dataclasses.replace(held, resources={}))
