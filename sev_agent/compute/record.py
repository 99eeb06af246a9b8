"""What a host knows of an instance, from its acceptance to its removal."""

import errno
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Self
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from sev_agent.errors import SevAgentError
from sev_agent.messaging.spool import Letter
from sev_agent.schema import Instance, Scheduling
from sev_agent.sev.generation import Generation

_FORMAT = 1
_TICK = timedelta(microseconds=1)
_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})
DISK_REMEDY = "free space on this host's disk, or use another host"


class State(StrEnum):
    """Where an instance stands; what is under way is resumed after a restart of the daemon.

    A reboot is ``REBOOTING`` or ``REBOOTING_HARD`` until the guest has stopped, then ``RESTARTING``: so one that is
    resumed never stops the guest a second time. ``RESCHEDULED`` could not be built here, and is another host's now.
    """

    BUILDING = "building"
    ACTIVE = "active"
    STOPPED = "stopped"
    STARTING = "starting"
    STOPPING = "stopping"
    REBOOTING = "rebooting"
    REBOOTING_HARD = "rebooting_hard"
    RESTARTING = "restarting"
    FAILING = "failing"
    ERROR = "error"
    RESCHEDULED = "rescheduled"
    DELETING = "deleting"
    DELETED = "deleted"

    @property
    def is_unfinished(self) -> bool:
        """Whether work on it must be taken up again after a restart."""
        return self not in {State.ACTIVE, State.STOPPED, State.ERROR, State.RESCHEDULED, State.DELETED}

    @property
    def is_gone(self) -> bool:
        """Whether this host has no such instance any more, and only remembers its UUID."""
        return self in {State.RESCHEDULED, State.DELETED}

    @property
    def is_last(self) -> bool:
        """Whether nothing but the end of a deletion can follow."""
        return self in {State.DELETING, State.DELETED}

    @property
    def has_files(self) -> bool:
        """Whether a disk of the instance may exist."""
        return self is not State.ERROR and not self.is_gone


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)


class Fault(_Value):
    """Why an instance is in error, for the person who must act."""

    code: str
    message: str
    step: str
    retryable: bool = False
    field: str | None = None
    remedy: str | None = None

    @classmethod
    def of(cls, error: BaseException, step: str) -> Self:
        """The fault that ``error`` makes when it ends ``step``."""
        if isinstance(error, SevAgentError):
            return cls(
                code=error.code,
                message=error.message,
                step=step,
                retryable=error.retryable,
                field=error.field,
                remedy=error.remedy,
            )
        if isinstance(error, OSError) and error.errno in _NO_SPACE:
            return cls(code="disk.full", message=str(error), step=step, retryable=True, remedy=DISK_REMEDY)
        return cls(code=SevAgentError.code, message=f"{type(error).__name__}: {error}", step=step)


class Record(_Value):
    """All that this host knows of one instance. ``handled`` are the requests it was last asked to start or stop by.

    ``scheduling`` is what the scheduler said that sent it, if one did.
    """

    format: Annotated[int, Field(ge=_FORMAT, le=_FORMAT)] = _FORMAT
    instance: Instance
    request_id: str
    scheduling: Scheduling | None = None
    state: State
    created_at: datetime
    updated_at: datetime
    generation: Generation | None = None
    base_image: Path | None = None
    firmware: Path | None = None
    firmware_sha256: str | None = None
    fault: Fault | None = None
    failure_told: bool = False
    """Whether the world knows of the fault of a build that is still being undone."""
    foreign: bool = False
    """Whether it failed because libvirt has another's domain of its UUID: what the consumer holds is not ours."""
    handled: tuple[str, ...] = ()
    owed: tuple[Letter, ...] = ()
    """What was not told yet of how operations on it ended; ``RecordStore`` alone writes it."""

    @classmethod
    def accept(cls, instance: Instance, request_id: str, scheduling: Scheduling | None = None) -> Self:
        """The record of a request that was just accepted."""
        now = datetime.now(UTC)
        return cls(
            instance=instance,
            request_id=request_id,
            scheduling=scheduling,
            state=State.BUILDING,
            created_at=now,
            updated_at=now,
        )

    @property
    def uuid(self) -> UUID:
        return self.instance.uuid

    def with_(self, **changes: Any) -> Self:
        """The record after ``changes``, stamped with the present time."""
        # A later change is told as the later one, also where the clock was set back meanwhile.
        now = max(datetime.now(UTC), self.updated_at + _TICK)
        return self.model_copy(update={**changes, "updated_at": now})

    def deleted(self) -> Self:
        """The record when nothing else is left: it knows the UUID again, and none of the tenant's own data."""
        return self._gone(state=State.DELETED, fault=None)

    def rescheduled(self) -> Self:
        """As ``deleted``, of what is another host's to build now; it still knows why."""
        return self._gone(state=State.RESCHEDULED)

    def _gone(self, **changes: Any) -> Self:
        bare = self.instance.model_copy(update={"user_data": None, "public_keys": {}, "metadata": {}})
        return self.with_(instance=bare, base_image=None, failure_told=False, **changes)
