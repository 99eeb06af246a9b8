"""What a notification, or a host that was asked, changes in what is known of a server. Pure.

Notifications come twice, late, out of order and from hosts that a server has left: nothing of that may do harm.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Annotated, Any, Self

from pydantic import AwareDatetime, BaseModel, BeforeValidator, Field

from sev_agent.api.state import Condition, Task, Vm, of_host
from sev_agent.api.tables import ServerRow
from sev_agent.config import UpkeepSection

SILENT = "scheduler.silent"
"""The code of a fault that says that no scheduler ever spoke of the server."""

_MAX_MESSAGE = 4000
_GONE = frozenset({"deleted", "deleting", "rescheduled"})
"""States in which a host has no need to be told to delete."""

_WITHOUT_GUEST = frozenset({"deleted", "rescheduled", "error"})
"""States in which a host has no guest: its word then counts only while it is the server's host."""


class Outcome(StrEnum):
    """What came of a notification."""

    APPLIED = "applied"
    STALE = "stale"
    UNKNOWN = "unknown"
    IGNORED = "ignored"


def _storable(value: Any) -> Any:
    """A text without what no database keeps: NUL, and halves of surrogate pairs. A program's output may have either."""
    return value.replace("\0", "").encode(errors="replace").decode() if isinstance(value, str) else value


_Word = Annotated[str, BeforeValidator(_storable)]


class _Part(BaseModel):
    """Others may add fields: unknown ones are ignored."""


class Fault(_Part):
    code: _Word = ""
    message: _Word = ""
    remedy: _Word | None = None


class Attempt(_Part):
    host: _Word
    code: _Word = ""
    message: _Word = ""


class Told(_Part):
    """The payload of a notification about an instance, by a host or a scheduler, or a host's answer."""

    instance_uuid: str = ""
    host: Annotated[_Word, Field(max_length=255)] | None = None
    state: str | None = None
    updated_at: AwareDatetime | None = None
    fault: Fault | None = None
    rescheduled: bool = False
    tried: tuple[Attempt, ...] = ()
    counts: Mapping[str, Any] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """What is to be done: ``terminate`` is a host that has a server which nobody wants any more."""

    outcome: Outcome
    terminate: str | None = None

    @classmethod
    def of(cls, outcome: Outcome) -> Self:
        return cls(outcome=outcome)


APPLIED = Effect.of(Outcome.APPLIED)
STALE = Effect.of(Outcome.STALE)
IGNORED = Effect.of(Outcome.IGNORED)


class Listener:
    """Changes rows by what is told. ``settings`` say when the upkeep looks after what is then still on its way."""

    def __init__(self, settings: UpkeepSection) -> None:
        self._settings = settings

    def by_scheduler(self, row: ServerRow, phase: str, told: Told) -> Effect:
        """``sev.instance.schedule.<phase>``."""
        match phase:
            case "end" if told.host is not None:
                return self._scheduled(row, told, told.host)
            case "error":
                return self._not_scheduled(row, told)
        return IGNORED

    def by_host(self, row: ServerRow, action: str, told: Told) -> Effect:
        """``sev.instance.<action>.<phase>`` of a host."""
        if told.host is None or told.state is None:
            return IGNORED
        if row.deleted_at is not None or row.task_state == Task.DELETING:
            return self._while_unwanted(row, told, told.host)
        if told.state == "refused":
            return self._refused(row, action, told)
        if is_stale(row, told, told.host) or (told.state in _WITHOUT_GUEST and row.host not in {None, told.host}):
            return STALE
        return self._while_wanted(row, told, told.host, told.state)

    def settle(self, row: ServerRow, condition: Condition, told: Told) -> None:
        """Make it what its host says it is."""
        now = datetime.now(UTC)
        row.vm_state = condition.vm.value
        row.task_state = condition.task.value if condition.task else None
        row.host = told.host or row.host
        row.told_by, row.told_at = row.host, told.updated_at or row.told_at
        row.fault = None if told.fault is None else fault_of(told.fault, now)
        row.updated_at = now
        row.looks = 0
        row.look_at = self._later() if condition.task else self.next_comparison()
        if condition.vm is Vm.ACTIVE and row.launched_at is None:
            row.launched_at = now
        if condition.vm is Vm.DELETED:
            row.deleted_at, row.look_at = now, None

    def fail(
        self,
        row: ServerRow,
        message: str,
        *,
        code: str,
        details: str | None = None,
        hosts: Iterable[str | None] = (),
    ) -> None:
        """Put it in ERROR for the reason ``message``, which may name ``hosts`` other than its own."""
        now = datetime.now(UTC)
        row.vm_state, row.task_state, row.looks = Vm.ERROR.value, None, 0
        row.look_at = None if row.host is None else self.next_comparison()
        row.fault = {
            "code": code,
            "message": message[:_MAX_MESSAGE],
            "details": details,
            "created": _text(now),
            "hosts": [host for host in hosts if host],
        }
        row.updated_at = now

    def forget(self, row: ServerRow) -> None:
        """It is deleted."""
        now = datetime.now(UTC)
        row.vm_state, row.task_state, row.look_at = Vm.DELETED.value, None, None
        row.deleted_at = row.updated_at = now

    def forget_unconfirmed(self, row: ServerRow) -> None:
        """It is deleted for its owner; its host has not said so, and its guest may run. Its addresses stay its own."""
        self.forget(row)
        row.task_state = Task.DELETING.value

    def next_comparison(self) -> datetime:
        """When a server that is on no way is compared with what its host knows."""
        return datetime.now(UTC) + timedelta(seconds=self._settings.compare_interval)

    def _scheduled(self, row: ServerRow, told: Told, host: str) -> Effect:
        if row.deleted_at is not None or row.task_state == Task.DELETING:
            return self._unwanted_on(row, host)
        if not _waits(row) or len(told.tried) < row.attempt or row.told_by == host:
            return STALE
        row.attempt = len(told.tried)
        row.host, row.casts = host, row.casts or 1
        row.vm_state, row.task_state, row.fault = Vm.BUILDING.value, Task.SPAWNING.value, None
        row.look_at, row.looks = self._later(), 0
        row.updated_at = datetime.now(UTC)
        return APPLIED

    def _not_scheduled(self, row: ServerRow, told: Told) -> Effect:
        if row.deleted_at is not None:
            if row.host is not None or row.task_state != Task.DELETING:
                return STALE
            # It was given up while its request waited, and now it is sure that it is nowhere.
            row.task_state = None
            return APPLIED
        if row.task_state == Task.DELETING:
            if row.terminate_host is None:
                self.forget(row)
            return APPLIED
        if not _waits(row) or len(told.tried) < row.attempt:
            return STALE
        fault = told.fault or Fault(code="scheduler.failed", message="no host was found")
        details = "; ".join(f"{each.host}: {each.code}: {each.message}" for each in told.tried) or None
        row.host = None
        self.fail(row, _message(fault), code=fault.code, details=details, hosts=(each.host for each in told.tried))
        return APPLIED

    def _while_wanted(self, row: ServerRow, told: Told, host: str, state: str) -> Effect:
        if told.rescheduled:
            # The schedulers heard of it first, and may have ended it already.
            return self._wait_for_another(row, told, host) if row.vm_state == Vm.BUILDING else STALE
        condition = of_host(state)
        if condition is None:
            return IGNORED
        self.settle(row, condition, told)
        return APPLIED

    def _while_unwanted(self, row: ServerRow, told: Told, host: str) -> Effect:
        if told.state == "deleted":
            if host not in {row.host, row.terminate_host}:
                return STALE
            if row.deleted_at is None:
                self.forget(row)
                return APPLIED
            if row.task_state == Task.DELETING:
                # It was given up, and now its host says that its guest is gone.
                row.task_state = None
                return APPLIED
            return STALE
        if told.rescheduled and host == row.terminate_host:
            # That host has let it go, and the next one will tell.
            row.terminate_host, row.host = None, None
            return APPLIED
        return STALE if told.state in _GONE else self._unwanted_on(row, host)

    def _unwanted_on(self, row: ServerRow, host: str) -> Effect:
        if row.terminate_host == host:
            return STALE
        if row.deleted_at is not None and row.host != host:
            # It has come to be after it was forgotten: the same as one that was given up.
            row.task_state = Task.DELETING.value
        row.terminate_host = host
        row.host = host
        if row.deleted_at is None:
            row.look_at, row.looks = self._later(), 0
        return Effect(outcome=Outcome.APPLIED, terminate=host)

    def _refused(self, row: ServerRow, action: str, told: Told) -> Effect:
        """A request that the host did not take. What it was for decides; the host's record stands as it was."""
        if row.host not in {None, told.host}:
            return STALE
        if action == "create" and row.vm_state == Vm.BUILDING:
            fault = told.fault or Fault(message="the host refused the request")
            row.host = None
            self.fail(row, _message(fault), code=fault.code, hosts=[told.host])
            return APPLIED
        if row.task_state is not None:
            row.look_at = datetime.now(UTC)
            return APPLIED
        return IGNORED

    def _wait_for_another(self, row: ServerRow, told: Told, host: str) -> Effect:
        now = datetime.now(UTC)
        row.told_by, row.told_at = host, told.updated_at
        row.casts = row.casts or 1
        row.vm_state, row.task_state, row.host = Vm.BUILDING.value, Task.SCHEDULING.value, None
        row.look_at, row.looks = now + timedelta(seconds=self._settings.schedule_deadline), 0
        row.updated_at = now
        return APPLIED

    def _later(self) -> datetime:
        return datetime.now(UTC) + timedelta(seconds=self._settings.transition_deadline)


def _waits(row: ServerRow) -> bool:
    """For the word of a scheduler, which may come after it was given up."""
    return row.vm_state == Vm.BUILDING or (row.vm_state == Vm.ERROR and (row.fault or {}).get("code") == SILENT)


def is_stale(row: ServerRow, told: Told, host: str) -> bool:
    """Whether something newer is known, or it comes from a host that the server has left."""
    if told.updated_at is None or row.told_at is None:
        return False
    if row.told_by == host:
        return told.updated_at <= row.told_at
    # Clocks of two hosts may differ: the one that the scheduler chose last is believed.
    return row.host != host and told.updated_at <= row.told_at


def fault_of(fault: Fault, now: datetime) -> dict[str, Any]:
    """As a row keeps it."""
    return {"code": fault.code, "message": _message(fault)[:_MAX_MESSAGE], "details": None, "created": _text(now)}


def _message(fault: Fault) -> str:
    return f"{fault.message} ({fault.remedy})" if fault.remedy else fault.message


def _text(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
