"""What a host does with requests to delete, whenever they come."""

import asyncio
from pathlib import Path
from uuid import uuid4

import pytest

from sev_agent.compute.instances import InstanceExists, InstanceNotFound
from sev_agent.compute.record import State
from sev_agent.compute.record_store import Superseded
from sev_agent.errors import Conflict, SevAgentError, Unavailable
from sev_agent.hypervisor.errors import HypervisorUnavailable
from tests.requests import instance
from tests.unit.compute.scripted_host import Host, start


async def test_terminate(host: Host) -> None:
    """An instance is deleted with all that was made for it, and then unknown."""
    asked = instance(user_data="c2VjcmV0")
    host.builder.go.set()
    await host.instances.build(asked, "req-1")
    await host.ear.until(asked.uuid, "create.end")

    await host.instances.terminate(asked.uuid, "req-2")
    assert host.state(asked.uuid) is State.DELETING
    end = await host.ear.until(asked.uuid, "delete.end")
    await host.idle()

    assert end.context.request_id == "req-2"
    assert not host.builder.made
    assert host.ear.of(asked.uuid)[-3:] == ["delete.start", "delete.progress", "delete.end"]
    with pytest.raises(InstanceNotFound):
        host.instances.view(asked.uuid)
    assert host.instances.views() == []
    assert list(host.instances.by_state()) == []
    assert b"c2VjcmV0" not in host.store.files(asked.uuid).record.read_bytes()


async def test_terminate_what_is_unknown(host: Host) -> None:
    """What is gone is gone: a success, told as one."""
    uuid = uuid4()

    await host.instances.terminate(uuid, "req-1")

    assert (await host.ear.until(uuid, "delete.end")).payload["state"] == "deleted"


async def test_terminate_again(host: Host) -> None:
    """A deletion that comes again is a success, during the first and after it."""
    asked = instance()
    host.builder.go.set()
    await host.instances.build(asked, "req-1")
    await host.ear.until(asked.uuid, "create.end")

    await asyncio.gather(*(host.instances.terminate(asked.uuid, "req-2") for _ in range(3)))
    await host.ear.until(asked.uuid, "delete.end")
    await host.idle()
    await host.instances.terminate(asked.uuid, "req-3")

    assert host.ear.of(asked.uuid).count("delete.start") == 1
    assert host.builder.undone.qsize() == 1
    assert host.state(asked.uuid) is State.DELETED


@pytest.mark.parametrize("state", [State.DELETING, State.DELETED])
async def test_build_of_what_is_deleted(host: Host, state: State) -> None:
    """A build that is delivered again after its deletion was accepted is refused: no guest rises from the dead."""
    asked = instance()
    host.builder.go.set()
    await host.instances.build(asked, "req-1")
    await host.ear.until(asked.uuid, "create.end")
    await host.idle()
    host.builder.undo_faults = [Unavailable("away")] if state is State.DELETING else []
    await host.instances.terminate(asked.uuid, "req-2")
    await host.undone()
    await host.idle()
    assert host.state(asked.uuid) is state

    with pytest.raises(InstanceExists, match=str(state)):
        await host.instances.build(asked, "req-1")


@pytest.mark.parametrize("turns", range(8))
async def test_terminate_at_any_moment_of_a_build(host: Host, turns: int) -> None:
    """A deletion, whenever it comes, ends the build first and then removes everything; the build is no failure."""
    asked = instance()
    await host.instances.build(asked, "req-1")
    if turns == 7:
        await host.begun()
    for _ in range(turns):
        await asyncio.sleep(0)
    if turns % 2:
        host.builder.go.set()

    await host.instances.terminate(asked.uuid, "req-2")
    await host.ear.until(asked.uuid, "delete.end")
    await host.idle()

    assert host.state(asked.uuid) is State.DELETED
    assert not host.builder.made
    assert "create.error" not in host.ear.of(asked.uuid)
    assert host.counted("error", "instance.superseded") == 0
    assert not host.instances.in_flight(asked.uuid)


async def test_build_that_comes_too_late(host: Host) -> None:
    """A build that finds its deletion in the journal is no failure: the deletion does what is left."""
    asked = instance()
    host.builder.go.set()
    host.builder.faults = [Superseded("being deleted")]

    await host.instances.build(asked, "req-1")
    await host.begun()
    await host.idle()

    assert host.builder.undone.empty()
    assert "create.error" not in host.ear.of(asked.uuid)
    assert host.state(asked.uuid) is State.BUILDING


async def test_terminate_while_a_failed_build_is_undone(host: Host) -> None:
    """A deletion takes over from the undoing of a failed build."""
    asked = instance()
    host.builder.go.set()
    host.builder.faults = [SevAgentError("oops")]
    host.builder.undo_faults = [Unavailable("away")]
    await host.instances.build(asked, "req-1")
    await host.undone()
    await host.idle()

    await host.instances.terminate(asked.uuid, "req-2")
    await host.ear.until(asked.uuid, "delete.end")
    await host.idle()

    assert host.state(asked.uuid) is State.DELETED
    assert not host.builder.made


async def test_terminate_a_build_that_waits(tmp_path: Path) -> None:
    """A build that waits for its turn is deleted without ever beginning."""
    host = start(tmp_path / "instances", max_concurrent=1)
    first, waiting = instance(), instance()
    await host.instances.build(first, "req-1")
    await host.begun()
    await host.instances.build(waiting, "req-2")

    await host.instances.terminate(waiting.uuid, "req-3")
    await host.ear.until(waiting.uuid, "delete.end")

    assert host.builder.begun.empty()
    host.builder.go.set()
    await host.ear.until(first.uuid, "create.end")
    await host.stop()


async def test_deletion_that_is_stopped(host: Host) -> None:
    """A deletion that libvirt's or Placement's absence stops is ended by the next resume."""
    asked = instance()
    host.builder.go.set()
    await host.instances.build(asked, "req-1")
    await host.ear.until(asked.uuid, "create.end")
    await host.idle()
    host.builder.undo_faults = [HypervisorUnavailable("gone"), Unavailable("away"), OSError(5, "Input/output error")]

    await host.instances.terminate(asked.uuid, "req-2")
    for _ in range(3):
        await host.undone()
        await host.idle()
        assert host.state(asked.uuid) is State.DELETING
        host.instances.resume()

    await host.ear.until(asked.uuid, "delete.end")
    assert not host.builder.made


async def test_deletion_that_is_refused(host: Host) -> None:
    """A deletion that does not get on is tried again; each new reason is told once, and stands in the record."""
    asked = instance()
    host.builder.go.set()
    await host.instances.build(asked, "req-1")
    await host.ear.until(asked.uuid, "create.end")
    host.builder.undo_faults = [Conflict("it is busy"), Conflict("it is busy"), Conflict("it is broken"), None]

    await host.instances.terminate(asked.uuid, "req-2")
    for reason in ("it is busy", "it is busy", "it is broken"):
        await host.idle()
        view = host.instances.view(asked.uuid)
        assert (view["state"], view["fault"]["message"], view["fault"]["step"]) == ("deleting", reason, "undefine")
        assert view["waiting_for"]["message"] == reason
        host.instances.resume()
    end = await host.ear.until(asked.uuid, "delete.end")
    await host.idle()

    deleting = [event for event in host.ear.of(asked.uuid) if event.startswith("delete.")]
    assert deleting == ["delete.start", "delete.error", "delete.error", "delete.progress", "delete.end"]
    assert end.payload["fault"] is None
    assert host.postponed.empty()
    assert host.metrics.registry.get_sample_value("sev_agent_deletions_total", {"outcome": "error"}) == 2


async def test_deletion_that_waits(host: Host) -> None:
    """While libvirt or Placement is away a deletion is no error: it waits, and shows for what."""
    asked = instance()
    host.builder.go.set()
    await host.instances.build(asked, "req-1")
    await host.ear.until(asked.uuid, "create.end")
    host.builder.undo_faults = [Unavailable("Placement is away")]

    await host.instances.terminate(asked.uuid, "req-2")
    await host.idle()

    view = host.instances.view(asked.uuid)
    assert (view["fault"], view["waiting_for"]["message"]) == (None, "Placement is away")
    assert host.postponed.qsize() == 1
    host.instances.resume()
    await host.ear.until(asked.uuid, "delete.end")
    deleting = [event for event in host.ear.of(asked.uuid) if event.startswith("delete.")]
    assert deleting == ["delete.start", "delete.progress", "delete.end"]
