"""How soon an event of a guest is acted upon."""

import asyncio
import time
from uuid import UUID, uuid4

import pytest

from sev_agent.compute.guest_events import GuestEvents
from sev_agent.hypervisor.events import Lifecycle, LifecycleEvent

HOLD = 0.05


class Watch:
    """Guest events at work, and all that they led to."""

    def __init__(self) -> None:
        self.uuid = uuid4()
        self.marked: list[UUID] = []
        self.stopped: list[UUID] = []
        self.in_flight = False
        self.let_go = asyncio.Event()
        self.events = GuestEvents(
            mark=self._mark, on_stopped=self.stopped.append, in_flight=lambda _: self.in_flight, hold=HOLD
        )

    def _mark(self, uuid: UUID) -> None:
        self.marked.append(uuid)
        self.let_go.set()

    def happens(self, event: Lifecycle, detail: str = "") -> None:
        self.events.on_event(
            LifecycleEvent(uuid=self.uuid, name="guest", event=event, detail=detail, received=time.monotonic())
        )


@pytest.fixture
async def watch() -> Watch:
    return Watch()


@pytest.mark.parametrize("detail", ["destroyed", "crashed", "failed", "saved", "migrated"])
async def test_ended_by_others(watch: Watch, detail: str) -> None:
    """A guest that was ended is looked at in the same moment."""
    watch.happens(Lifecycle.STOPPED, detail)

    assert watch.marked == watch.stopped == [watch.uuid]
    assert not watch.events.holds(watch.uuid)


@pytest.mark.parametrize("event", [Lifecycle.STARTED, Lifecycle.CRASHED, Lifecycle.UNDEFINED])
async def test_what_may_change_the_count(watch: Watch, event: Lifecycle) -> None:
    """Whatever may change what a guest holds is looked at at once."""
    watch.happens(event)

    assert watch.marked == [watch.uuid]


@pytest.mark.parametrize("event", [Lifecycle.DEFINED, Lifecycle.SUSPENDED, Lifecycle.REBOOTED, Lifecycle.SHUTDOWN])
async def test_what_does_not(watch: Watch, event: Lifecycle) -> None:
    """What changes nothing in what a guest holds asks nobody anything."""
    watch.happens(event)

    assert not watch.marked


async def test_ended_by_itself(watch: Watch) -> None:
    """A guest that switched itself off is left alone for a moment, then looked at, once."""
    watch.happens(Lifecycle.SHUTDOWN, "finished")
    watch.happens(Lifecycle.STOPPED, "shutdown")

    assert watch.stopped == [watch.uuid]
    assert watch.marked == []
    assert watch.events.holds(watch.uuid)
    async with asyncio.timeout(60):
        await watch.let_go.wait()
    assert not watch.events.holds(watch.uuid)
    await asyncio.sleep(2 * HOLD)
    assert watch.marked == [watch.uuid]


async def test_reboot_as_a_pair(watch: Watch) -> None:
    """A guest that stops and starts within the moment is looked at when it runs again, and never before."""
    watch.happens(Lifecycle.STOPPED, "shutdown")
    assert watch.marked == []

    watch.happens(Lifecycle.STARTED, "booted")

    assert watch.marked == [watch.uuid]
    assert not watch.events.holds(watch.uuid)
    await asyncio.sleep(2 * HOLD)
    assert watch.marked == [watch.uuid]


async def test_during_an_operation(watch: Watch) -> None:
    """What an operation brings about is its own to follow, and holds nothing up after it."""
    watch.in_flight = True

    watch.happens(Lifecycle.STOPPED, "shutdown")

    assert watch.stopped == [watch.uuid]
    assert not watch.events.holds(watch.uuid)
