"""What is told of a server changes what is known of it, and nothing else does."""

from datetime import UTC, datetime, timedelta
from itertools import permutations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sev_agent.api.state import Condition, Task, Vm
from sev_agent.api.tables import ServerRow
from sev_agent.api.told import Fault, Listener, Outcome, Told
from sev_agent.config import UpkeepSection

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LISTENER = Listener(UpkeepSection())


def row(**values: Any) -> ServerRow:
    """A server that waits for a host."""
    known = {"vm_state": Vm.BUILDING.value, "task_state": Task.SCHEDULING.value, "attempt": 0, "looks": 0}
    return ServerRow(id="s", **{**known, **values})


def told(state: str, *, host: str = "h1", at: float = 0, **more: Any) -> Told:
    return Told(instance_uuid="s", host=host, state=state, updated_at=NOW + timedelta(seconds=at), **more)


def state(of: ServerRow) -> tuple[str, str | None, str | None]:
    return of.vm_state, of.task_state, of.host


def test_a_life() -> None:
    """Scheduled, built, stopped, deleted."""
    server = row()
    LISTENER.by_scheduler(server, "end", Told(host="h1"))
    assert state(server) == ("building", "spawning", "h1")
    LISTENER.by_host(server, "create", told("active", at=1))
    assert state(server) == ("active", None, "h1")
    assert server.launched_at is not None
    LISTENER.by_host(server, "stop", told("stopped", at=2))
    assert state(server) == ("stopped", None, "h1")
    LISTENER.by_host(server, "delete", told("deleted", at=3))
    assert server.deleted_at is not None


@pytest.mark.parametrize("order", list(permutations(range(4))))
def test_any_order_ends_the_same(order: tuple[int, ...]) -> None:
    """The newest word of the host wins, however late the others come, and each may come twice."""
    words = [told("building", at=0), told("active", at=1), told("stopping", at=2), told("stopped", at=3)]
    server = row(host="h1", task_state="spawning")
    for index in (*order, *reversed(order)):
        LISTENER.by_host(server, "create", words[index])
    LISTENER.by_scheduler(server, "end", Told(host="h1"))
    assert state(server) == ("stopped", None, "h1")


def test_the_next_host_after_a_failure() -> None:
    """The words of a host that a server has left do it no harm."""
    server = row()
    LISTENER.by_scheduler(server, "end", Told(host="h1"))
    failed = told("rescheduled", at=9, rescheduled=True)
    LISTENER.by_host(server, "create", failed)
    assert state(server) == ("building", "scheduling", None)
    tried = ({"host": "h1", "code": "x", "message": "y"},)
    LISTENER.by_scheduler(server, "end", Told.model_validate({"host": "h2", "tried": tried}))
    # h2's clock is behind h1's.
    assert LISTENER.by_host(server, "create", told("active", host="h2", at=1)).outcome is Outcome.APPLIED
    for late in (failed, told("building", at=1), told("deleted", at=99), told("error", at=99)):
        assert LISTENER.by_host(server, "create", late).outcome is Outcome.STALE
    assert LISTENER.by_scheduler(server, "end", Told(host="h1")).outcome is Outcome.STALE
    assert state(server) == ("active", None, "h2")


def test_no_host_after_two_failures() -> None:
    """The schedulers' last word, older ones of theirs being ignored."""
    server = row(attempt=2)
    early = Told.model_validate({"fault": {"code": "c", "message": "early"}})
    assert LISTENER.by_scheduler(server, "error", early).outcome is Outcome.STALE
    tried = [{"host": f"h{n}", "code": "x", "message": "full"} for n in range(2)]
    last = Told.model_validate({"fault": {"code": "c", "message": "no host"}, "tried": tried})
    LISTENER.by_scheduler(server, "error", last)
    assert (server.vm_state, server.fault["message"] if server.fault else "") == ("error", "no host")
    assert server.fault is not None
    assert server.fault["details"] == "h0: x: full; h1: x: full"


def test_the_schedulers_are_faster_than_the_host() -> None:
    """They hear of a failed build before its host tells of it: the host's word then changes nothing any more."""
    tried = [{"host": "h1", "code": "x", "message": "full"}]
    failed = told("rescheduled", at=1, rescheduled=True)
    for phase, expected in (("end", ("building", "spawning", "h2")), ("error", ("error", None, None))):
        server = row(host="h1", task_state="spawning", told_by="h1", told_at=NOW)
        LISTENER.by_scheduler(server, phase, Told.model_validate({"host": "h2", "tried": tried}))
        assert LISTENER.by_host(server, "create", failed).outcome is Outcome.STALE
        assert state(server) == expected
    server = row(task_state="deleting", host="h2", terminate_host="h2")
    LISTENER.by_host(server, "create", failed)
    assert server.terminate_host == "h2"


def test_unwanted_where_it_lives() -> None:
    """A deleted server that a host has after all is deleted there; the host is told once, and again by no copy."""
    server = row(vm_state="deleted", task_state=None, deleted_at=NOW)
    assert LISTENER.by_host(server, "create", told("active")).terminate == "h1"
    assert LISTENER.by_host(server, "create", told("active")).terminate is None
    assert LISTENER.by_scheduler(server, "end", Told(host="h2")).terminate == "h2"
    assert LISTENER.by_host(server, "delete", told("deleted", at=5)).terminate is None


def test_its_host_has_the_last_word() -> None:
    """One that is gone for its owner is gone for good when its host, and no other, says so; or turns out to have it."""
    server = row(vm_state="active", task_state="deleting", host="h1", terminate_host="h1")
    LISTENER.forget_unconfirmed(server)
    assert state(server) == ("deleted", "deleting", "h1")
    assert LISTENER.by_host(server, "delete", told("deleted", host="h2")).outcome is Outcome.STALE
    assert LISTENER.by_host(server, "delete", told("deleted")).outcome is Outcome.APPLIED
    assert state(server) == ("deleted", None, "h1")
    LISTENER.by_host(server, "create", told("active"))
    assert state(server) == ("deleted", None, "h1"), "a copy that comes late"
    server = row(vm_state="deleted", task_state=None, deleted_at=NOW)
    LISTENER.by_host(server, "create", told("active"))
    assert state(server) == ("deleted", "deleting", "h1")


def test_deleted_in_the_middle_of_rescheduling() -> None:
    """The host that let it go does not count as the one that deleted it: the next one must be told, too."""
    server = row(task_state="deleting", host="h1", terminate_host="h1")
    LISTENER.by_host(server, "create", told("rescheduled", rescheduled=True))
    assert server.deleted_at is None
    assert LISTENER.by_scheduler(server, "end", Told(host="h2")).terminate == "h2"
    LISTENER.by_host(server, "delete", told("deleted", host="h1", at=2))
    assert server.deleted_at is None
    LISTENER.by_host(server, "delete", told("deleted", host="h2", at=3))
    assert server.deleted_at is not None


def test_a_refused_request() -> None:
    """A build that was not taken is an error; a power change that was not taken makes the host be asked soon."""
    server = row(host="h1")
    refused = told("refused", fault={"code": "bad", "message": "no", "remedy": "other"})
    LISTENER.by_host(server, "create", refused)
    assert (server.vm_state, server.fault["message"] if server.fault else "") == ("error", "no (other)")
    server = row(vm_state="active", task_state="powering-off", host="h1", look_at=NOW + timedelta(days=9999))
    LISTENER.by_host(server, "stop", refused)
    assert server.look_at is not None
    assert server.look_at <= datetime.now(UTC)


def test_words_that_mean_nothing() -> None:
    """A state that no host has, no host, no state: nothing changes."""
    server = row()
    for word in (told("dancing"), told("active").model_copy(update={"host": None}), Told()):
        assert LISTENER.by_host(server, "create", word).outcome is Outcome.IGNORED
    assert LISTENER.by_scheduler(server, "start", Told(host="h1")).outcome is Outcome.IGNORED
    assert state(server) == ("building", "scheduling", None)


STATES = ("building", "active", "stopped", "starting", "stopping", "error", "deleted", "refused", "rescheduled", "x")


@given(
    words=st.lists(
        st.tuples(st.sampled_from(STATES), st.sampled_from(["h1", "h2"]), st.integers(0, 5), st.booleans()), max_size=12
    )
)
def test_whatever_is_told(words: list[tuple[str, str, int, bool]]) -> None:
    """A server stays in a state that exists, and one that is deleted stays deleted."""
    server = row()
    for name, host, at, scheduled in words:
        was_deleted = server.deleted_at is not None
        if scheduled:
            LISTENER.by_scheduler(server, "end", Told(host=host))
        else:
            LISTENER.by_host(server, "create", told(name, host=host, at=at, rescheduled=name == "rescheduled"))
        assert server.vm_state in set(Vm)
        assert server.task_state in {*Task, None}
        assert not was_deleted or server.deleted_at is not None


def test_schedulers_that_are_late() -> None:
    """What they say of a server that was given up for their silence counts, be it a host or that there is none."""
    placed, refused, other = (row() for _ in range(3))
    for each in (placed, refused):
        LISTENER.fail(each, "no word", code="scheduler.silent")
    LISTENER.fail(other, "the image is gone", code="image.gone")
    end = Told(host="h1")
    error = Told(fault=Fault(code="scheduler.no_valid_host", message="no host"))
    assert LISTENER.by_scheduler(placed, "end", end).outcome is Outcome.APPLIED
    assert (state(placed), placed.fault) == (("building", "spawning", "h1"), None)
    assert LISTENER.by_scheduler(refused, "error", error).outcome is Outcome.APPLIED
    assert (refused.fault or {})["message"] == "no host"
    assert LISTENER.by_scheduler(other, "end", end).outcome is Outcome.STALE


def test_what_is_compared_later() -> None:
    """A server that is on no way, and has a host, is looked after again in a while."""
    later = datetime.now(UTC) + timedelta(seconds=UpkeepSection().compare_interval - 60)
    server = row(host="h1", task_state="spawning")
    LISTENER.by_host(server, "create", told("active", at=1))
    assert server.look_at is not None
    assert server.look_at > later
    LISTENER.fail(server, "lost", code="server.lost")
    assert server.look_at is not None
    assert server.look_at > later
    nowhere = row()
    LISTENER.fail(nowhere, "no host", code="scheduler.no_valid_host")
    assert nowhere.look_at is None
    LISTENER.by_host(server, "delete", told("deleted", at=2))
    assert server.look_at is None


@pytest.mark.parametrize("text", ["no\0thing", "no\ud800thing"])
def test_what_no_database_keeps(text: str) -> None:
    """A fault with the odd character of a program's output is told all the same, without it."""
    server = row(host="h1", task_state="spawning")
    word = Told.model_validate({"host": "h1", "state": "error", "fault": {"code": "x", "message": text}})
    LISTENER.by_host(server, "create", word)
    assert server.fault is not None
    assert server.fault["message"] in {"nothing", "no?thing"}


def test_a_host_that_does_not_say_its_name() -> None:
    """The server stays where it is."""
    server = row(host="h1", task_state="spawning")
    LISTENER.settle(server, Condition(Vm.ACTIVE), Told(state="active", updated_at=NOW))
    assert (server.host, server.told_by) == ("h1", "h1")
