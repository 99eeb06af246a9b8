"""What a host does with requests to start, stop and reboot: they are carried out, wait, or fail with a reason."""

from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import pytest

from sev_agent.compute.instances import InstanceNotFound
from sev_agent.compute.power_change import WrongState
from sev_agent.compute.record import Record, State
from sev_agent.compute.record_store import JournalFailed, RecordStore
from sev_agent.errors import Conflict, Exhausted, InvalidRequest, Unavailable
from sev_agent.hypervisor.errors import HypervisorUnavailable
from tests.requests import instance, record
from tests.unit.compute.power_changes import CHANGES, HARD, SOFT, START, STOP, begun, has
from tests.unit.compute.scripted_host import Host, start


@pytest.mark.parametrize(("state", "to", "steps", "then", "action"), CHANGES)
async def test_change(host: Host, state: State, to: State, steps: list[str], then: State, action: str) -> None:
    """A request is in the journal when it is accepted, in flight while it is worked on, then done and told of."""
    known = has(host, state)

    accepted = await host.instances.change_power(known.uuid, to, "req-2")

    assert accepted.state is to
    assert f'"{to}"'.encode() in host.store.files(known.uuid).record.read_bytes()
    assert host.instances.in_flight(known.uuid)
    host.power.go.set()
    end = await host.ear.until(known.uuid, f"{action}.end")
    await host.idle()
    assert host.power.done == steps
    assert host.state(known.uuid) is then
    assert end.payload["state"] == then
    assert end.context.request_id == "req-2"
    assert host.ear.of(known.uuid) == [f"{action}.start", f"{action}.end"]
    assert not host.instances.in_flight(known.uuid)
    assert host.marks.marked == [known.uuid]


async def test_reboot_never_looks_stopped(host: Host) -> None:
    """From its acceptance to its end a reboot is in flight, and what libvirt says meanwhile changes nothing."""
    known = has(host, State.ACTIVE)
    await host.instances.change_power(known.uuid, SOFT, "req-2")
    assert await begun(host) == "halt"

    await host.instances.observe(known.uuid, runs=False)

    assert host.state(known.uuid) is SOFT
    host.power.go.set()
    assert await begun(host) == "restart"
    await host.ear.until(known.uuid, "reboot.end")
    assert "stop.end" not in host.ear.of(known.uuid)


async def test_no_slot(host: Host) -> None:
    """A start that finds no slot leaves the instance stopped, with the reason in its record and in the notification."""
    known = has(host, State.STOPPED)
    host.power.go.set()
    host.power.faults = [Exhausted("every slot is taken", remedy="stop another guest")]

    await host.instances.change_power(known.uuid, START, "req-2")
    error = await host.ear.until(known.uuid, "start.error")
    await host.idle()

    fault = cast("dict[str, Any]", error.payload["fault"])
    assert (fault["code"], fault["step"], fault["remedy"]) == ("exhausted", "start", "stop another guest")
    assert error.priority == "error"
    assert host.state(known.uuid) is State.STOPPED
    assert host.instances.view(known.uuid)["fault"] == fault
    assert not host.power.running
    labels = {"action": "start", "outcome": "error", "code": "exhausted"}
    assert host.metrics.registry.get_sample_value("sev_agent_power_changes_total", labels) == 1


@pytest.mark.parametrize(
    ("to", "faults", "then"),
    [
        (STOP, [Conflict("it hangs")], State.ACTIVE),
        (SOFT, [Conflict("it hangs")], State.ACTIVE),
        (HARD, [None, Conflict("does not start")], State.STOPPED),
        (SOFT, [None, ZeroDivisionError("oops")], State.STOPPED),
    ],
)
async def test_failure(host: Host, to: State, faults: list[BaseException | None], then: State) -> None:
    """After a failure the instance is as libvirt says, with the reason, and free for the next request."""
    known = has(host, State.ACTIVE)
    host.power.go.set()
    host.power.faults = faults

    await host.instances.change_power(known.uuid, to, "req-2")
    await host.idle()

    assert host.state(known.uuid) is then
    assert host.instances.view(known.uuid)["fault"]["step"] == ("stop" if to is STOP else "reboot")
    assert host.ear.of(known.uuid)[-1].endswith(".error")
    await host.instances.change_power(known.uuid, HARD, "req-3")
    await host.ear.until(known.uuid, "reboot.end")
    assert host.instances.view(known.uuid)["fault"] is None


@pytest.mark.parametrize("fault", [HypervisorUnavailable("gone"), Unavailable("Placement is away")])
@pytest.mark.parametrize(("state", "to", "steps", "then", "action"), CHANGES)
async def test_what_is_needed_is_away(
    host: Host, fault: Exception, state: State, to: State, steps: list[str], then: State, action: str
) -> None:
    """What libvirt's or Placement's absence stops is no failure: it waits, asks to be resumed, and then ends."""
    known = has(host, state)
    host.power.go.set()
    host.power.faults = [None] * (len(steps) - 1) + [fault]

    await host.instances.change_power(known.uuid, to, "req-2")
    await host.idle()

    assert host.instances.in_flight(known.uuid)
    assert host.postponed.qsize() == 1
    assert f"{action}.error" not in host.ear.of(known.uuid)
    host.instances.resume()
    await host.ear.until(known.uuid, f"{action}.end")
    assert host.power.done == steps
    assert host.state(known.uuid) is then


@pytest.mark.parametrize(("state", "to", "steps", "then", "action"), CHANGES)
@pytest.mark.parametrize("late", [0.0, 1.0])
async def test_kill(
    tmp_path: Path, state: State, to: State, steps: list[str], then: State, action: str, late: float
) -> None:
    """What a daemon that was killed had begun, the next one ends; a guest that was stopped is not stopped again."""
    first = start(tmp_path / "instances", stop_timeout=0.01)
    known = has(first, state)
    await first.instances.change_power(known.uuid, to, "req-2")
    if late and len(steps) == 2:
        first.power.go.set()
        first.power.faults = [None, HypervisorUnavailable("the moment of the kill")]
        await first.idle()
    else:
        await begun(first)
    await first.stop()

    again = start(tmp_path / "instances")
    again.power.go.set()
    again.instances.resume()
    await again.ear.until(known.uuid, f"{action}.end")
    await again.idle()

    assert again.power.done == (steps[1:] if late and len(steps) == 2 else steps)
    assert again.state(known.uuid) is then
    await again.stop()


@pytest.mark.parametrize("state", [State.BUILDING, State.ERROR, State.DELETING])
async def test_wrong_state(host: Host, state: State) -> None:
    """A request that the state does not allow is refused with the state and a remedy, and changes nothing."""
    known = record(state)
    host.store.save(known)

    with pytest.raises(WrongState, match=str(state)) as caught:
        await host.instances.change_power(known.uuid, STOP, "req-2")

    assert caught.value.remedy
    assert host.store.get(known.uuid) == known


async def test_unknown_instance(host: Host) -> None:
    """What is not there cannot be started, stopped or rebooted."""
    with pytest.raises(InstanceNotFound):
        await host.instances.change_power(uuid4(), START, "req-2")


async def test_request_that_cannot_be_written_down(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a journal nothing is accepted and nothing begins."""
    known = has(host, State.ACTIVE)

    def full(_: RecordStore, __: Record, **___: object) -> None:
        raise JournalFailed("no space")

    monkeypatch.setattr(RecordStore, "save", full)

    with pytest.raises(JournalFailed):
        await host.instances.change_power(known.uuid, STOP, "req-2")

    assert host.state(known.uuid) is State.ACTIVE
    assert host.power.begun.empty()


async def test_guests_that_hang_hold_up_no_build(tmp_path: Path) -> None:
    """Guests that take long to shut down wait beside the builds, and the builds beside them."""
    host = start(tmp_path / "instances", max_concurrent=1, max_power_changes=3)
    hanging = [has(host, State.ACTIVE) for _ in range(5)]
    for known in hanging:
        await host.instances.change_power(known.uuid, STOP, "req")
    for _ in range(3):
        await begun(host)
    host.builder.go.set()
    asked = instance()

    await host.instances.build(asked, "req-1")
    await host.ear.until(asked.uuid, "create.end")

    assert host.power.most_at_once == 3
    host.power.go.set()
    for known in hanging:
        await host.ear.until(known.uuid, "stop.end")
    assert host.power.most_at_once == 3
    await host.stop()


async def test_observed_is_told(host: Host) -> None:
    """A guest that ends or starts without a request is told of, as what it is, and an old fault is forgotten."""
    known = record(State.STOPPED)
    host.store.save(known)
    host.power.go.set()
    host.power.faults = [InvalidRequest("no")]
    await host.instances.change_power(known.uuid, START, "req-2")
    await host.ear.until(known.uuid, "start.error")
    await host.idle()

    await host.instances.observe(known.uuid, runs=True)

    end = await host.ear.until(known.uuid, "start.end")
    assert end.payload["observed"] is True
    assert end.payload["fault"] is None
    assert host.instances.view(known.uuid)["fault"] is None


async def test_start_that_waits(host: Host) -> None:
    """A start that Placement's absence holds up says so, is told of once, and goes on when Placement is back."""
    known = has(host, State.STOPPED)
    host.power.go.set()
    host.power.faults = [Unavailable("Placement is away"), Unavailable("Placement is away")]

    await host.instances.change_power(known.uuid, START, "req-2")
    for _ in range(2):
        await host.idle()
        view = host.instances.view(known.uuid)
        assert (view["state"], view["waiting_for"]["message"]) == ("starting", "Placement is away")
        host.instances.resume()
    await host.ear.until(known.uuid, "start.end")
    await host.idle()

    assert host.ear.of(known.uuid) == ["start.start", "start.end"]
    assert host.instances.view(known.uuid)["waiting_for"] is None


@pytest.mark.parametrize(
    ("handled", "starts"),
    [
        ((), True),
        (("stop req-1", "start req-2"), True),
        (("stop req-1", "start req-2", "stop req-3"), False),
        (("stop req-1", "start req-2", "stop req-3", "start req-4"), True),
    ],
)
async def test_stopped_since_the_host_was_restarted(host: Host, handled: tuple[str, ...], starts: bool) -> None:  # noqa: FBT001
    """A guest whose user stopped it after the restart of its host, before its turn came, is left alone."""
    known = has(host, State.STOPPED).with_(handled=handled)
    host.store.save(known)
    host.power.go.set()

    if starts:
        await host.instances.start_again(known.uuid, "start req-2")
    else:
        with pytest.raises(WrongState, match="was stopped by request"):
            await host.instances.start_again(known.uuid, "start req-2")

    assert host.state(known.uuid) is (State.ACTIVE if starts else State.STOPPED)
