"""Services that are killed, stopped or cut off in the middle of work: nothing is lost, counted wrong or left behind."""

import asyncio
import dataclasses
import os
import re
import signal
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from uuid import UUID

import pytest

from sev_agent.domain.identity import domain_name
from tests.faults.conftest import World
from tests.faults.services import Leaned

pytestmark = pytest.mark.asyncio(loop_scope="session")

AWAY_SECONDS = 1.0
MOMENTS = (0.0, 0.3)
"""Seconds from the requests to the fault: at their first steps, and as the guests start."""


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


async def test_during_builds(world: World, fault: Fault) -> None:
    """A fault among builds, a deletion, a stop and a reboot: each ends as asked, or as a build with its error."""
    await world.have()
    for moment in MOMENTS:
        doomed, stopping, rebooting = await asyncio.gather(*(world.build() for _ in range(3)))
        begun = [await world.begin() for _ in range(2)]
        await world.delete(doomed)
        await world.power("stop_instance", stopping, "stopped")
        await world.power("reboot_instance", rebooting, "active", reboot_type="HARD")
        await asyncio.sleep(moment)
        await _strike(world, fault)
        world.note()
        await world.hold()
        await world.delete(*begun, stopping, rebooting)
        await world.hold()


async def test_during_reconciliations(world: World, fault: Fault) -> None:
    """A fault among comparisons that have something to repair: in the end everything is repaired."""
    await world.have(reconciler__interval=1, reconciler__jitter=0)
    guests = [await world.build() for _ in range(3)]
    for uuid in guests:
        await _forget(world, uuid)
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
