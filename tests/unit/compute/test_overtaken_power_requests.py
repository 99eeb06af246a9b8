"""What a host does with a request that comes while another is carried out on the same guest."""

import asyncio
import time
from typing import Any

import pytest

from sev_agent.compute.announcements import Announcements
from sev_agent.compute.instances import InstanceNotFound
from sev_agent.compute.record import Record, State
from sev_agent.compute.record_store import RecordStore
from sev_agent.errors import Conflict
from sev_agent.messaging.spool import Letter
from sev_agent.schema import Phase
from tests.requests import instance
from tests.unit.compute.power_changes import CHANGES, HARD, SOFT, STOP, begun, has
from tests.unit.compute.scripted_host import Host


async def test_hard_reboot_of_a_guest_that_does_not_shut_down(host: Host) -> None:
    """A hard reboot ends the waiting of a soft one, and the guest is restarted once."""
    known = has(host, State.ACTIVE)
    await host.instances.change_power(known.uuid, SOFT, "req-2")
    assert await begun(host) == "halt"

    await host.instances.change_power(known.uuid, HARD, "req-3")
    assert await begun(host) == "halt hard"
    host.power.go.set()
    end = await host.ear.until(known.uuid, "reboot.end")
    await host.idle()

    assert host.power.done == ["halt hard", "restart"]
    assert end.context.request_id == "req-3"
    assert host.state(known.uuid) is State.ACTIVE


@pytest.mark.parametrize("turns", range(14))
async def test_hard_reboot_at_any_moment_of_a_soft_one(host: Host, turns: int) -> None:
    """Whenever it comes, no request is lost, none overlaps another, and the guest runs in the end."""
    known = has(host, State.ACTIVE)
    host.power.go.set()
    await host.instances.change_power(known.uuid, SOFT, "req-2")
    for _ in range(turns):
        await asyncio.sleep(0)

    await host.instances.change_power(known.uuid, HARD, "req-3")
    await host.ear.until(known.uuid, "reboot.end")
    await host.idle()

    stored = host.store.get(known.uuid)
    assert stored is not None
    assert stored.state is State.ACTIVE
    assert stored.handled == ("reboot req-2", "reboot req-3")
    assert known.uuid in host.power.running
    assert host.power.done[-1] == "restart"


async def test_what_comes_of_it_too_late(host: Host) -> None:
    """The outcome of an operation is neither written over what was accepted meanwhile nor told."""
    known = has(host, State.ACTIVE)
    await host.instances.change_power(known.uuid, STOP, "req-2")
    assert await begun(host) == "stop"
    stopping = host.store.get(known.uuid)
    assert stopping is not None
    host.store.save(stopping.with_(state=HARD))

    host.power.go.set()
    await host.idle()
    await host.ear.until(known.uuid, "stop.start")

    assert host.state(known.uuid) is HARD
    assert host.ear.of(known.uuid) == ["stop.start"]


async def test_nothing_is_left_to_do(host: Host) -> None:
    """Whoever takes up an instance that has come to its end meanwhile does nothing, and tells nothing."""
    known = has(host, State.ACTIVE)
    host.power.go.set()

    await host.instances._operations.carry_out(known.uuid, resumed=True)
    await host.idle()

    assert (host.power.done, host.ear.of(known.uuid), host.state(known.uuid)) == ([], [], State.ACTIVE)


@pytest.mark.parametrize(("state", "to", "steps", "then", "action"), CHANGES)
@pytest.mark.parametrize("turns", [0, 1, 3, 6, 10, 15])
async def test_delete_at_any_moment(
    host: Host, state: State, to: State, steps: list[str], then: State, action: str, turns: int
) -> None:
    """A deletion, whenever it comes, ends the operation first and leaves nothing; the operation is no failure."""
    del then
    known = has(host, state)
    if turns != 1:
        host.power.go.set()
    await host.instances.change_power(known.uuid, to, "req-2")
    for _ in range(turns):
        await asyncio.sleep(0)

    await host.instances.terminate(known.uuid, "req-3")
    await host.ear.until(known.uuid, "delete.end")
    await host.idle()

    assert host.state(known.uuid) is State.DELETED
    assert f"{action}.error" not in host.ear.of(known.uuid)
    assert host.power.done == steps[: len(host.power.done)]
    assert not host.instances.in_flight(known.uuid)
    with pytest.raises(InstanceNotFound):
        await host.instances.change_power(known.uuid, to, "req-4")


async def test_delete_waits_for_what_cannot_be_cancelled(host: Host) -> None:
    """A deletion after a hard reboot after a soft one waits until the first has let go of the guest."""
    known = has(host, State.ACTIVE)
    release = asyncio.Event()

    async def stubborn(record: Record, *, hard: bool) -> None:
        del record, hard
        host.power.begun.put_nowait("halt")
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue
        raise asyncio.CancelledError

    host.power.halt = stubborn  # type: ignore[method-assign]
    await host.instances.change_power(known.uuid, SOFT, "req-2")
    await begun(host)
    await host.instances.change_power(known.uuid, HARD, "req-3")
    await host.instances.terminate(known.uuid, "req-4")
    await asyncio.sleep(0.02)

    assert host.builder.undone.empty()
    release.set()
    await host.ear.until(known.uuid, "delete.end")


async def test_stop_as_a_build_ends(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stop that comes as soon as the journal says active takes nothing from the build, its notification included."""
    asked = instance()
    conclude, saved, may_end = Announcements.conclude, asyncio.Event(), asyncio.Event()

    async def slow(told: Announcements, record: Record, action: str, phase: Phase, **details: Any) -> None:
        await conclude(told, record, action, phase, **details)
        saved.set()
        await may_end.wait()

    monkeypatch.setattr(Announcements, "conclude", slow)
    host.builder.go.set()
    host.power.go.set()
    await host.instances.build(asked, "req-1")
    await saved.wait()

    await host.instances.change_power(asked.uuid, STOP, "req-2")
    await asyncio.sleep(0)
    may_end.set()
    await host.ear.until(asked.uuid, "stop.end")

    assert host.ear.of(asked.uuid) == ["create.start", "create.progress", "create.end", "stop.start", "stop.end"]
    assert host.counted("active") == 1


async def test_hard_reboot_as_a_soft_one_fails(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """A soft reboot whose failure comes while a hard one is being accepted does not write over it."""
    known = has(host, State.ACTIVE)
    save, loop = RecordStore.save, asyncio.get_running_loop()
    host.power.faults = [Conflict("it hangs")]

    def late(store: RecordStore, record: Record, *, owing: Letter | None = None) -> None:
        if record.state is HARD:
            loop.call_soon_threadsafe(host.power.go.set)
            time.sleep(0.05)
        save(store, record, owing=owing)

    monkeypatch.setattr(RecordStore, "save", late)
    await host.instances.change_power(known.uuid, SOFT, "req-2")
    await begun(host)
    await host.instances.change_power(known.uuid, HARD, "req-3")
    await host.ear.until(known.uuid, "reboot.end")
    await host.idle()

    assert "reboot.error" not in host.ear.of(known.uuid)
    assert host.power.done == ["halt hard", "restart"]
