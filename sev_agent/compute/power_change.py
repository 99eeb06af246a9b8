"""What starts, stops and reboots are: when each may begin, what it leads to, and the answer to a request. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from sev_agent.compute.record import Record, State
from sev_agent.errors import Conflict

_REMEMBERED: Final = 32
"""Requests that a record remembers, so that one that is delivered again is not carried out again."""


class WrongState(Conflict):
    """The instance's state does not allow the operation."""

    code = "instance.wrong_state"


@dataclass(frozen=True, slots=True)
class PowerChange:
    """Work on a guest that was built.

    A request for it begins it in ``begins_in`` and joins what is under way in ``joins``; ``leads_to`` is the state
    after it.
    """

    action: str
    begins_in: frozenset[State]
    joins: frozenset[State]
    leads_to: State


_RESTARTS: Final = frozenset({State.REBOOTING_HARD, State.RESTARTING})

POWER_CHANGES: Final[Mapping[State, PowerChange]] = {
    State.STARTING: PowerChange("start", frozenset({State.STOPPED}), frozenset({State.STARTING}), State.ACTIVE),
    State.STOPPING: PowerChange("stop", frozenset({State.ACTIVE}), frozenset({State.STOPPING}), State.STOPPED),
    State.REBOOTING: PowerChange("reboot", frozenset({State.ACTIVE}), _RESTARTS | {State.REBOOTING}, State.RESTARTING),
    State.REBOOTING_HARD: PowerChange(
        "reboot", frozenset({State.ACTIVE, State.STOPPED, State.REBOOTING}), _RESTARTS, State.RESTARTING
    ),
    State.RESTARTING: PowerChange("reboot", frozenset(), frozenset(), State.ACTIVE),
}
"""Each by the state that an instance has while it is worked on."""


class Verdict(Enum):
    """What a request comes to: work begins, there is nothing to do, or it is part of what was asked for before."""

    BEGINS = auto()
    IS_SO = auto()
    KNOWN = auto()


def judge(record: Record, to: State, request_id: str) -> tuple[Verdict, Record]:
    """Answer the request for the change that the state ``to`` stands for, with the record as it is to be saved.

    The record is ``record`` itself where the same request was answered before, whatever has happened since: a copy
    that was delayed must not undo what was asked for later. Raises ``WrongState``.
    """
    change = POWER_CHANGES[to]
    request = f"{change.action} {request_id}"
    if request in record.handled:
        return Verdict.KNOWN, record
    remembering = record.with_(handled=(*record.handled, request)[-_REMEMBERED:])
    if record.state in change.joins:
        return Verdict.KNOWN, remembering
    if record.state in change.begins_in:
        return Verdict.BEGINS, remembering.with_(state=to, request_id=request_id, fault=None)
    if record.state is change.leads_to:
        return Verdict.IS_SO, remembering.with_(request_id=request_id, fault=None)
    raise WrongState(
        f"instance {record.uuid} is {record.state}: it cannot {change.action} now",
        field="instance_uuid",
        remedy=_remedy(record.state, change),
    )


def last_request(record: Record) -> str:
    """The request that was answered last, by which a later look tells whether another one came; empty for none."""
    return record.handled[-1] if record.handled else ""


def was_stopped_since(record: Record, request: str) -> bool:
    """Whether the last that was asked for, after ``request`` as ``last_request`` told it then, is a stop."""
    last = last_request(record)
    return last != request and last.startswith(f"{POWER_CHANGES[State.STOPPING].action} ")


def refuse_if_stopped_since(record: Record, request: str) -> None:
    """Raises ``WrongState`` where ``was_stopped_since``."""
    if was_stopped_since(record, request):
        raise WrongState(
            f"instance {record.uuid} was stopped by request", field="instance_uuid", remedy="start it by request"
        )


def _remedy(state: State, change: PowerChange) -> str:
    match state:
        case State.ERROR:
            return "it was never built: delete it, and build another one"
        case State.DELETING:
            return "it is being deleted: build another one"
        case State.STOPPED:
            return "start it, or reboot it hard, which needs no running guest"
        case _:
            return f"wait until it is {' or '.join(sorted(change.begins_in))}, then ask again"
