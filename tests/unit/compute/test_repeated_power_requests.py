"""What a host does with a request to start, stop or reboot that it has had before, or that asks for what is so."""

import asyncio
from pathlib import Path

import pytest

from sev_agent.compute.record import State
from tests.unit.compute.power_changes import SOFT, START, STOP, begun, has
from tests.unit.compute.scripted_host import Host, start


async def test_copies(host: Host) -> None:
    """One request that is delivered many times, also at once and after later ones, is carried out once."""
    known = has(host, State.ACTIVE)
    host.power.go.set()

    await asyncio.gather(*(host.instances.change_power(known.uuid, STOP, "req-stop") for _ in range(5)))
    await host.ear.until(known.uuid, "stop.end")
    await host.idle()
    await host.instances.change_power(known.uuid, START, "req-start")
    await host.ear.until(known.uuid, "start.end")
    await host.idle()
    late = await host.instances.change_power(known.uuid, STOP, "req-stop")
    await host.idle()

    assert late.state is State.ACTIVE
    assert host.power.done == ["stop", "start"]
    assert host.ear.of(known.uuid).count("stop.end") == 1


async def test_copies_after_a_restart(host: Host, tmp_path: Path) -> None:
    """The next daemon knows the requests of the one before it."""
    known = has(host, State.ACTIVE)
    host.power.go.set()
    await host.instances.change_power(known.uuid, SOFT, "req-2")
    await host.ear.until(known.uuid, "reboot.end")
    await host.idle()
    await host.stop()
    again = start(tmp_path / "instances")

    await again.instances.change_power(known.uuid, SOFT, "req-2")
    await again.idle()

    assert again.power.begun.empty()
    await again.stop()


async def test_joined(host: Host) -> None:
    """A second request for what is under way is a success, and is not carried out after it."""
    known = has(host, State.ACTIVE)
    await host.instances.change_power(known.uuid, STOP, "req-2")
    await begun(host)

    assert (await host.instances.change_power(known.uuid, STOP, "req-3")).state is STOP
    host.power.go.set()
    await host.ear.until(known.uuid, "stop.end")
    await host.idle()
    await host.instances.observe(known.uuid, runs=True)

    assert (await host.instances.change_power(known.uuid, STOP, "req-3")).state is State.ACTIVE
    assert host.power.done == ["stop"]


@pytest.mark.parametrize(("state", "to", "action"), [(State.ACTIVE, START, "start"), (State.STOPPED, STOP, "stop")])
async def test_what_is_so_already(host: Host, state: State, to: State, action: str) -> None:
    """A request for what is so already is told as done, with its own request, and does nothing."""
    known = has(host, state)

    accepted = await host.instances.change_power(known.uuid, to, "req-2")
    end = await host.ear.until(known.uuid, f"{action}.end")

    assert accepted.state is state
    assert end.context.request_id == "req-2"
    assert host.power.begun.empty()
