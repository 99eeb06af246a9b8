"""Which requests to start, stop and reboot are taken, and what they come to."""

import pytest

from sev_agent.compute.power_change import POWER_CHANGES, Verdict, WrongState, judge
from sev_agent.compute.record import Fault, Record, State
from tests.requests import record

START, STOP, SOFT, HARD = State.STARTING, State.STOPPING, State.REBOOTING, State.REBOOTING_HARD
ORDERS = (START, STOP, SOFT, HARD)

BEGINS = {
    (State.STOPPED, START),
    (State.ACTIVE, STOP),
    (State.ACTIVE, SOFT),
    (State.ACTIVE, HARD),
    (State.STOPPED, HARD),
    (State.REBOOTING, HARD),
}
IS_SO = {(State.ACTIVE, START), (State.STOPPED, STOP)}
KNOWN = {
    (State.STARTING, START),
    (State.STOPPING, STOP),
    *((state, SOFT) for state in (State.REBOOTING, State.REBOOTING_HARD, State.RESTARTING)),
    *((state, HARD) for state in (State.REBOOTING_HARD, State.RESTARTING)),
}


def expected(state: State, to: State) -> Verdict | None:
    """None for what is refused."""
    for verdict, pairs in ((Verdict.BEGINS, BEGINS), (Verdict.IS_SO, IS_SO), (Verdict.KNOWN, KNOWN)):
        if (state, to) in pairs:
            return verdict
    return None


@pytest.mark.parametrize("to", ORDERS)
@pytest.mark.parametrize("state", list(State))
def test_every_state(state: State, to: State) -> None:
    """In each state each request begins, joins, is so already, or is refused with the state and a remedy."""
    known = record(state)

    if (verdict := expected(state, to)) is None:
        with pytest.raises(WrongState, match=f"is {state}: it cannot {POWER_CHANGES[to].action}") as caught:
            judge(known, to, "req-2")
        assert caught.value.field == "instance_uuid"
        assert caught.value.remedy
        return
    found, judged = judge(known, to, "req-2")

    assert found is verdict
    assert judged.state is (to if verdict is Verdict.BEGINS else state)
    assert judged.handled == (f"{POWER_CHANGES[to].action} req-2",)
    assert judged.request_id == ("req-1" if verdict is Verdict.KNOWN else "req-2")


def after(state: State, known: Record) -> Record:
    """What an operation leaves."""
    return known.with_(state=state)


def test_late_copy() -> None:
    """A copy of a request that arrives after later ones changes nothing, whatever it came to at first."""
    _, started = judge(record(State.ACTIVE), START, "req-start")
    _, stopping = judge(started, STOP, "req-stop")
    stopped = after(State.STOPPED, stopping)

    assert judge(stopped, START, "req-start") == (Verdict.KNOWN, stopped)


def test_copy_of_what_was_joined() -> None:
    """A request that joined another's work is not carried out later either."""
    _, first = judge(record(State.ACTIVE), STOP, "req-1")
    _, both = judge(first, STOP, "req-2")
    running = after(State.ACTIVE, both)

    assert judge(running, STOP, "req-2") == (Verdict.KNOWN, running)


def test_one_request_id_for_two_methods() -> None:
    """A caller that stops and starts in one request of its own gets both."""
    _, stopping = judge(record(State.ACTIVE), STOP, "req-1")
    verdict, _ = judge(after(State.STOPPED, stopping), START, "req-1")

    assert verdict is Verdict.BEGINS


def test_memory_is_bounded() -> None:
    """A record does not grow with the requests that it has seen, and forgets the oldest first."""
    known = record(State.ACTIVE)
    for number in range(100):
        _, known = judge(known, START, f"req-{number}")

    assert len(known.handled) == 32
    assert known.handled[-1] == "start req-99"


def test_fault_belongs_to_the_last_request() -> None:
    """A request that is accepted forgets why the one before it failed."""
    failed = record(State.STOPPED, fault=Fault(code="placement.full", message="full", step="start"))

    assert judge(failed, START, "req-2")[1].fault is None
    assert judge(failed, STOP, "req-2")[1].fault is None


@pytest.mark.parametrize("state", [state for state in State if state in POWER_CHANGES])
def test_all_work_ends(state: State) -> None:
    """Each change leads, by way of others or not, to a state that stays."""
    for _ in range(3):
        state = POWER_CHANGES[state].leads_to if state.is_unfinished else state

    assert state in {State.ACTIVE, State.STOPPED}
