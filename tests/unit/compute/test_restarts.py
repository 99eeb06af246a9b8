"""What a daemon takes up when it starts, and what it leaves when it stops."""

import asyncio
from pathlib import Path

import pytest

from sev_agent.compute.record import Record, State
from tests.journal import opened
from tests.requests import instance, record
from tests.unit.compute.scripted_host import PATIENCE, Host, start


@pytest.mark.parametrize(
    ("state", "then"),
    [(State.BUILDING, State.ACTIVE), (State.FAILING, State.ERROR), (State.DELETING, State.DELETED)],
)
async def test_restart(tmp_path: Path, state: State, then: State) -> None:
    """What was unfinished when the daemon died is finished after its start; without a disk it needs no image."""
    before = opened(tmp_path / "instances")
    fault = {"fault": {"code": "x", "message": "y", "step": "disk"}} if state is State.FAILING else {}
    base = {"base_image": Path("/images/base")}
    unfinished = Record.model_validate(record(state).model_dump() | base | fault)
    before.save(unfinished)
    host = start(tmp_path / "instances")
    host.builder.go.set()

    assert host.instances.in_flight(unfinished.uuid)
    host.instances.resume()
    host.instances.resume()
    await host.idle()

    finished = host.store.get(unfinished.uuid)
    assert finished is not None
    assert (finished.state, finished.base_image is None) == (then, then is not State.ACTIVE)
    await host.stop()


@pytest.mark.parametrize("state", [State.ACTIVE, State.STOPPED, State.ERROR, State.DELETED])
async def test_restart_with_what_is_finished(tmp_path: Path, state: State) -> None:
    """What was finished is left alone by a resume."""
    before = opened(tmp_path / "instances")
    finished = record(state)
    before.save(finished)
    host = start(tmp_path / "instances")

    host.instances.resume()
    await host.idle()

    assert not host.instances.in_flight(finished.uuid)
    assert host.store.get(finished.uuid) == finished
    await host.stop()


async def test_stop_waits(host: Host) -> None:
    """A stop lets what is under way end."""
    asked = instance()
    await host.instances.build(asked, "req-1")
    await host.begun()

    stopping = asyncio.create_task(host.stop())
    await asyncio.sleep(0.05)
    assert not stopping.done()
    host.builder.go.set()
    await stopping

    assert host.state(asked.uuid) is State.ACTIVE
    assert "create.end" in host.ear.of(asked.uuid)


async def test_stop_is_bounded(tmp_path: Path) -> None:
    """What does not end in time is left as it is, and resumable; nothing new begins."""
    host = start(tmp_path / "instances", stop_timeout=0.1)
    asked = instance()
    await host.instances.build(asked, "req-1")
    await host.begun()

    async with asyncio.timeout(PATIENCE):
        await host.stop()
    host.instances.resume()
    await asyncio.sleep(0)

    assert host.state(asked.uuid) is State.BUILDING
    assert host.builder.undone.empty()
    assert host.builder.begun.empty()
    again = start(tmp_path / "instances")
    again.builder.go.set()
    again.instances.resume()
    await again.ear.until(asked.uuid, "create.end")
    await again.stop()
