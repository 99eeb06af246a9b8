"""What a host does with requests to build, whenever they come."""

import asyncio
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import pytest

from sev_agent.compute.build import ForeignDomain
from sev_agent.compute.instances import InstanceExists
from sev_agent.compute.record import Record, State
from sev_agent.compute.record_store import JournalFailed, RecordStore
from sev_agent.errors import Conflict, InvalidRequest, SevAgentError, Unavailable
from sev_agent.hypervisor.errors import HypervisorUnavailable
from sev_agent.messaging.spool import Letter
from sev_agent.schema import Instance
from tests.requests import instance, record
from tests.unit.compute.scripted_host import PATIENCE, Host, start


async def test_build(host: Host) -> None:
    """A request is in the journal when it is accepted, in flight while it is worked on, and ends as active."""
    asked = instance()

    accepted = await host.instances.build(asked, "req-1")

    assert accepted.state is State.BUILDING
    assert b'"building"' in host.store.files(asked.uuid).record.read_bytes()
    assert host.instances.in_flight(asked.uuid)
    assert await host.begun() == (asked.uuid, False)
    assert host.instances.view(asked.uuid)["steps"] == ["disk"]
    host.builder.go.set()
    end = await host.ear.until(asked.uuid, "create.end")
    await host.idle()
    assert end.payload["state"] == "active"
    assert end.context.request_id == "req-1"
    assert host.ear.of(asked.uuid) == ["create.start", "create.progress", "create.end"]
    assert host.state(asked.uuid) is State.ACTIVE
    assert not host.instances.in_flight(asked.uuid)
    assert host.marks.marked == [asked.uuid]
    assert host.counted("active") == 1
    assert host.instances.view(asked.uuid)["steps"] == []


async def test_failed_build(host: Host) -> None:
    """A build that fails is undone, and then told of with the step, the code and the remedy."""
    asked = instance()
    host.builder.go.set()
    host.builder.faults = [InvalidRequest("is wrong", field="instance.image", remedy="use another")]

    await host.instances.build(asked, "req-1")
    error = await host.ear.until(asked.uuid, "create.error")
    await host.idle()

    fault = cast("dict[str, Any]", error.payload["fault"])
    assert (fault["code"], fault["step"], fault["remedy"]) == ("request.invalid", "disk", "use another")
    assert error.priority == "error"
    assert host.state(asked.uuid) is State.ERROR
    assert not host.builder.made
    assert host.counted("error", "request.invalid") == 1
    assert not host.instances.in_flight(asked.uuid)


async def test_fault_of_ours(host: Host) -> None:
    """An error that nobody foresaw ends the build as any other, and the daemon goes on."""
    asked, next_one = instance(), instance()
    host.builder.go.set()
    host.builder.faults = [ZeroDivisionError("oops")]

    await host.instances.build(asked, "req-1")
    error = await host.ear.until(asked.uuid, "create.error")
    await host.instances.build(next_one, "req-2")
    await host.ear.until(next_one.uuid, "create.end")

    fault = cast("dict[str, Any]", error.payload["fault"])
    assert (fault["code"], fault["message"]) == ("internal", "ZeroDivisionError: oops")


async def test_libvirt_away(host: Host) -> None:
    """A build that libvirt's absence stops is not failed, undone or told again: it goes on with the next resume."""
    asked = instance()
    host.builder.go.set()
    host.builder.faults = [HypervisorUnavailable("gone")]

    await host.instances.build(asked, "req-1")
    await host.begun()
    await host.idle()

    assert host.state(asked.uuid) is State.BUILDING
    assert host.instances.in_flight(asked.uuid)
    assert host.builder.undone.empty()
    assert host.postponed.qsize() == 1
    host.instances.resume()
    assert await host.begun() == (asked.uuid, True)
    await host.ear.until(asked.uuid, "create.end")
    assert host.ear.of(asked.uuid).count("create.start") == 1


async def test_undoing_that_waits(host: Host) -> None:
    """A failed build whose undoing is stopped stays failing, and is undone by the next resume. It is told of once."""
    asked = instance()
    host.builder.go.set()
    host.builder.faults = [SevAgentError("oops")]
    host.builder.undo_faults = [Unavailable("Placement is away")]

    await host.instances.build(asked, "req-1")
    await host.undone()
    await host.idle()

    assert host.state(asked.uuid) is State.FAILING
    assert host.instances.in_flight(asked.uuid)
    assert host.instances.view(asked.uuid)["fault"]["message"] == "oops"
    assert "create.error" not in host.ear.of(asked.uuid)
    host.instances.resume()
    await host.ear.until(asked.uuid, "create.error")
    await host.idle()
    assert host.state(asked.uuid) is State.ERROR
    assert host.ear.of(asked.uuid).count("create.error") == 1
    assert not host.builder.made


@pytest.mark.parametrize("fault", [Conflict("again and again"), OSError(5, "Input/output error")])
async def test_undoing_that_is_refused(tmp_path: Path, fault: Exception) -> None:
    """Where the undoing is refused the failure is told all the same, once over restarts; then its end is."""
    asked = instance()
    host = start(tmp_path / "instances")
    host.builder.go.set()
    host.builder.faults = [SevAgentError("oops")]
    host.builder.undo_faults = [Unavailable("Placement is away"), fault, fault]

    await host.instances.build(asked, "req-1")
    await host.idle()
    assert "create.error" not in host.ear.of(asked.uuid)
    host.instances.resume()
    error = await host.ear.until(asked.uuid, "create.error")
    await host.idle()
    host.instances.resume()
    await host.idle()
    await host.stop()

    told = cast("dict[str, Any]", error.payload["fault"])
    assert (error.payload["state"], told["message"], error.context.request_id) == ("failing", "oops", "req-1")
    assert host.state(asked.uuid) is State.FAILING
    assert host.instances.in_flight(asked.uuid)
    assert host.builder.made
    assert host.ear.of(asked.uuid).count("create.error") == 1

    again = start(tmp_path / "instances")
    again.builder.undo_faults = [fault]
    again.instances.resume()
    await again.idle()
    assert again.state(asked.uuid) is State.FAILING
    again.instances.resume()
    end = await again.ear.until(asked.uuid, "create.error")
    await again.idle()
    await again.stop()

    assert (end.payload["state"], again.state(asked.uuid)) == ("error", State.ERROR)
    assert again.ear.of(asked.uuid).count("create.error") == 1


async def test_uuid_of_anothers_domain(host: Host) -> None:
    """The record of a build that a foreign domain stood against says so, also when it was deleted."""
    asked = instance()
    host.builder.faults = [ForeignDomain("Nova has it")]
    host.builder.go.set()

    await host.instances.build(asked, "req-1")
    await host.ear.until(asked.uuid, "create.error")
    await host.idle()
    failed = host.store.get(asked.uuid)
    await host.instances.terminate(asked.uuid, "req-2")
    await host.ear.until(asked.uuid, "delete.end")
    await host.idle()
    deleted = host.store.get(asked.uuid)

    assert (failed and failed.state, deleted and deleted.state) == (State.ERROR, State.DELETED)
    assert failed is not None
    assert deleted is not None
    assert failed.foreign
    assert deleted.foreign


async def test_full_disk_during_a_build(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk so full that even the failure cannot be written down: the build is undone all the same."""
    asked = instance()
    await host.instances.build(asked, "req-1")
    await host.begun()
    save, attempts = host.store.save, []

    def full_once(_: RecordStore, late: Record, *, owing: Letter | None = None) -> None:
        attempts.append(late.state)
        if late.state is State.FAILING:
            raise JournalFailed("no space")
        save(late, owing=owing)

    monkeypatch.setattr(RecordStore, "save", full_once)
    host.builder.faults = [OSError(28, "No space left on device")]
    host.builder.go.set()

    error = await host.ear.until(asked.uuid, "create.error")
    await host.idle()

    assert cast("dict[str, Any]", error.payload["fault"])["code"] == "disk.full"
    assert attempts == [State.FAILING, State.ERROR]
    assert not host.builder.made


async def test_request_that_cannot_be_written_down(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a journal nothing is accepted and nothing begins."""

    def full(_: RecordStore, __: Record) -> None:
        raise JournalFailed("no space")

    monkeypatch.setattr(RecordStore, "save", full)

    with pytest.raises(JournalFailed):
        await host.instances.build(instance(), "req-1")

    assert not host.instances.views()
    assert host.builder.begun.empty()


@pytest.mark.parametrize("when", ["building", "active", "error"])
async def test_same_request_again(host: Host, when: str) -> None:
    """A request that comes again is a success that begins nothing."""
    asked = instance()
    host.builder.faults = [SevAgentError("oops")] if when == "error" else []
    await host.instances.build(asked, "req-1")
    await host.begun()
    if when != "building":
        host.builder.go.set()
        await host.ear.until(asked.uuid, "create.end" if when == "active" else "create.error")
        await host.idle()

    again = await host.instances.build(asked, "req-1")

    assert again.state == when
    assert host.builder.begun.empty()
    assert host.ear.of(asked.uuid).count("create.start") == 1


async def test_other_content(host: Host) -> None:
    """Another request with the same UUID is refused, and the first goes on."""
    asked = instance()
    await host.instances.build(asked, "req-1")

    with pytest.raises(InstanceExists, match="other content") as caught:
        await host.instances.build(instance(asked.uuid, name="other"), "req-2")

    assert caught.value.field == "instance.uuid"
    host.builder.go.set()
    await host.ear.until(asked.uuid, "create.end")


async def test_same_request_twice_at_once(host: Host) -> None:
    """Two deliveries of one request at the same time begin one build."""
    asked = instance()

    await asyncio.gather(*(host.instances.build(asked, "req-1") for _ in range(5)))
    host.builder.go.set()
    await host.ear.until(asked.uuid, "create.end")
    await host.idle()

    assert host.ear.of(asked.uuid).count("create.start") == 1


async def test_resume_during_acceptance(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """A resume that sees the journal before the acceptance goes on begins the build, and no second one follows."""
    asked = instance()
    save, loop = RecordStore.save, asyncio.get_running_loop()

    def save_and_resume(store: RecordStore, late: Record, *, owing: Letter | None = None) -> None:
        save(store, late, owing=owing)
        if late.state is State.BUILDING:
            asyncio.run_coroutine_threadsafe(_call(host.instances.resume), loop).result(PATIENCE)

    monkeypatch.setattr(RecordStore, "save", save_and_resume)
    await host.instances.build(asked, "req-1")
    await host.begun()
    host.builder.go.set()
    await host.ear.until(asked.uuid, "create.end")
    await host.idle()

    assert host.ear.of(asked.uuid).count("create.start") == 1


async def _call(function: Any) -> None:
    function()


async def test_acceptance_that_is_cancelled(host: Host) -> None:
    """A handler that is cancelled while it writes the journal leaves a build that goes on, not one that waits."""
    asked = instance()
    handling = asyncio.create_task(host.instances.build(asked, "req-1"))
    await asyncio.sleep(0)
    handling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await handling

    assert await host.begun() == (asked.uuid, False)


async def test_bounded_builds(tmp_path: Path) -> None:
    """No more builds than configured work at once; the others wait, and all end."""
    host = start(tmp_path / "instances", max_concurrent=3)
    asked = [instance() for _ in range(8)]
    for one in asked:
        await host.instances.build(one, "req")
    for _ in range(3):
        await host.begun()
    host.builder.go.set()

    for one in asked:
        await host.ear.until(one.uuid, "create.end")

    assert host.builder.most_running == 3
    await host.stop()


@pytest.mark.parametrize("runs", [True, False])
@pytest.mark.parametrize("state", list(State))
async def test_observed(host: Host, state: State, *, runs: bool) -> None:
    """What libvirt says changes the state of an instance that stands still, and of no other."""
    known = record(state)
    host.store.save(known)

    await host.instances.observe(known.uuid, runs=runs)
    await host.instances.observe(uuid4(), runs=runs)

    stands = state in {State.ACTIVE, State.STOPPED}
    assert host.state(known.uuid) is ((State.ACTIVE if runs else State.STOPPED) if stands else state)


async def test_views(host: Host) -> None:
    """All instances are listed, the oldest first, without those that are gone."""
    known = [record(state) for state in (State.ACTIVE, State.ERROR, State.DELETED, State.STOPPED)]
    for one in known:
        host.store.save(one)

    assert [view["uuid"] for view in host.instances.views()] == [
        str(one.uuid) for one in known if one.state is not State.DELETED
    ]
    assert sorted(host.instances.by_state()) == [(("active",), 1.0), (("error",), 1.0), (("stopped",), 1.0)]
    assert isinstance(known[0].instance, Instance)


async def test_nothing_grows(host: Host) -> None:
    """After many builds and deletions nothing is kept in memory but the records."""
    host.builder.go.set()
    for _ in range(20):
        asked = instance()
        await host.instances.build(asked, "req")
        await host.ear.until(asked.uuid, "create.end")
        await host.instances.terminate(asked.uuid, "req")
        await host.ear.until(asked.uuid, "delete.end")
    await host.idle()

    assert not host.instances._tasks
    assert not host.instances._operations._progress
    assert not host.instances._operations._waiting
    assert len(host.instances._locks) == 0
