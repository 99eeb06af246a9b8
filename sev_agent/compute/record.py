"""The journal of a host: one durable record for each instance, from its acceptance to its removal."""

import errno
import json
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Self
from uuid import UUID

import structlog
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sev_agent.compute.instance_files import RECORD_NAME, InstanceFiles
from sev_agent.compute.shelf import NAME as SHELF
from sev_agent.compute.shelf import Shelf
from sev_agent.durable import discard_unfinished, sync_directory, write_durably
from sev_agent.errors import Conflict, Exhausted, SevAgentError
from sev_agent.messaging.spool import Letter
from sev_agent.schema import Instance, Scheduling
from sev_agent.sev.generation import Generation

log = structlog.stdlib.get_logger(__name__)

_FORMAT = 1
_MAX_RECORD_BYTES = 4 * 1024 * 1024
_TICK = timedelta(microseconds=1)
_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})
_DISK_REMEDY = "free space on this host's disk, or use another host"


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


class Superseded(Conflict):
    """Another request was accepted meanwhile: what comes of the earlier one may not be written any more."""

    code = "instance.superseded"


class JournalFailed(Exhausted):
    """The host cannot write down what it would have to remember; another host may."""

    code = "journal.failed"


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
            return cls(code="disk.full", message=str(error), step=step, retryable=True, remedy=_DISK_REMEDY)
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


@dataclass(slots=True)
class RecordStore:
    """The records below ``directory``, in memory and on disk alike. Its methods block on the disk.

    A directory that holds no record of ours (cut short, written by another version, or not named by a UUID) is set
    aside in ``.set-aside`` and logged, or left where it is if it cannot be moved: it never blocks the start, and never
    is lost. ``bases_set_aside`` are the images below the disks in such directories, which a guest may still run on.
    """

    directory: Path
    bases_set_aside: frozenset[Path] = frozenset()
    _records: dict[UUID, Record] = field(default_factory=dict)
    _guard: threading.Lock = field(default_factory=threading.Lock)
    _writing: dict[UUID, threading.Lock] = field(default_factory=dict)
    _left_out: frozenset[str] = frozenset()

    def open(self) -> None:
        """Read every record. Raises ``OSError`` where the directory itself cannot be used."""
        self.directory.mkdir(mode=0o711, parents=True, exist_ok=True)
        # The kernel lets QEMU, under an identity of its own, through to the files it may open.
        self.directory.chmod(0o711)
        shelf = Shelf(self.directory)
        for path in sorted(self.directory.iterdir()):
            if path.name == SHELF or not path.is_dir():
                continue
            try:
                record = _recover(path)
            except (ValueError, OSError) as error:
                shelf.take(path, error)
            else:
                if record is not None:
                    self._records[record.uuid] = record
        self._left_out = shelf.left_out
        self.bases_set_aside = shelf.bases()

    def files(self, uuid: UUID) -> InstanceFiles:
        return InstanceFiles(self.directory / str(uuid))

    def get(self, uuid: UUID) -> Record | None:
        return self._records.get(uuid)

    def __iter__(self) -> Iterator[Record]:
        return iter(list(self._records.values()))

    def here(self) -> Iterator[Record]:
        """The records of what this host has, without what it only remembers."""
        return (record for record in self if not record.state.is_gone)

    def save(self, record: Record, *, owing: Letter | None = None) -> None:
        """Write ``record`` durably; in memory it changes only after the disk has it.

        ``owing`` is what has to be told once this is true; the record keeps it, over every later save, until
        ``settle`` says that it is safe elsewhere.

        Raises ``Superseded`` where a deletion stands in the journal and ``record`` knows nothing of it, and
        ``JournalFailed`` where the disk does not take it; then the earlier record stands.
        """
        with self._lock(record.uuid):
            present = self._records.get(record.uuid)
            if present is not None and present.state.is_last and not record.state.is_last:
                raise Superseded(f"instance {record.uuid} is being deleted")
            owed = (*(present.owed if present else ()), *((owing,) if owing else ()))
            self._replace(record.model_copy(update={"owed": owed}))

    def settle(self, uuid: UUID, sequence: int) -> None:
        """Note that the letter ``sequence``, which the record of ``uuid`` owed, is safe elsewhere.

        Raises ``JournalFailed`` where the disk does not take it.
        """
        with self._lock(uuid):
            present = self._records.get(uuid)
            if present is not None and any(letter.sequence == sequence for letter in present.owed):
                left = tuple(letter for letter in present.owed if letter.sequence != sequence)
                self._replace(present.model_copy(update={"owed": left}))

    def _replace(self, record: Record) -> None:
        try:
            self._write(record)
        except OSError as error:
            raise JournalFailed(
                f"the record of instance {record.uuid} cannot be written: {error.strerror}", remedy=_DISK_REMEDY
            ) from error
        self._records[record.uuid] = record

    def _write(self, record: Record) -> None:
        files = self.files(record.uuid)
        if str(record.uuid) in self._left_out:
            raise FileExistsError(errno.EEXIST, "one that cannot be read is in its place", str(files.record))
        is_new = not files.directory.exists()
        if is_new:
            files.directory.mkdir(mode=0o711)
        try:
            if is_new:
                files.directory.chmod(0o711)
                sync_directory(self.directory)
            write_durably(files.record, record.model_dump_json(indent=1, exclude_defaults=True).encode())
        except OSError:
            if is_new:
                shutil.rmtree(files.directory, ignore_errors=True)
            raise

    def _lock(self, uuid: UUID) -> threading.Lock:
        with self._guard:
            return self._writing.setdefault(uuid, threading.Lock())

    def remove_files(self, uuid: UUID) -> None:
        """Remove all that a build made for ``uuid``, save the record. Repeatable."""
        files = self.files(uuid)
        if not files.directory.exists():
            return
        for path in files.directory.iterdir():
            if path != files.record:
                path.unlink(missing_ok=True)
        sync_directory(files.directory)

    def forget_gone(self, *, older_than: timedelta, most: int) -> None:
        """Remove the records of instances that left so long ago that no message asks for them again.

        No more than ``most`` are kept, the latest ones; none is removed that owes a letter.
        """
        limit = datetime.now(UTC) - older_than
        gone = sorted((record for record in self if record.state.is_gone), key=lambda record: record.updated_at)
        surplus = len(gone) - most
        for place, record in enumerate(gone):
            if (place < surplus or record.updated_at < limit) and not record.owed:
                self._forget(record)

    def _forget(self, record: Record) -> None:
        with self._lock(record.uuid):
            # What was sent to this host once more meanwhile is here again.
            if self._records.get(record.uuid) is record:
                shutil.rmtree(self.files(record.uuid).directory, ignore_errors=True)
                del self._records[record.uuid]
                self._writing.pop(record.uuid, None)


def _recover(directory: Path) -> Record | None:
    """The record in ``directory``, once what a power loss left is removed; nothing where that was all.

    Raises ``ValueError`` and ``OSError``. What is not named as ours is not touched.
    """
    if str(UUID(directory.name)) != directory.name:
        raise ValueError("not named as an instance's directory is")
    if all(path.name.startswith(f".{RECORD_NAME}.") for path in directory.iterdir()):
        # Of a first write: until the record was whole, nothing was promised to anyone.
        shutil.rmtree(directory)
        return None
    discard_unfinished(directory)
    return _read(directory)


def _read(directory: Path) -> Record:
    path = directory / RECORD_NAME
    with path.open("rb") as file:
        content = file.read(_MAX_RECORD_BYTES + 1)
    if len(content) > _MAX_RECORD_BYTES:
        raise ValueError(f"larger than {_MAX_RECORD_BYTES} bytes")
    try:
        record = Record.model_validate_json(content)
    except ValidationError as error:
        raise ValueError(json.dumps(error.errors(include_url=False, include_input=False), default=str)) from None
    if str(record.uuid) != directory.name:
        raise ValueError(f"speaks of instance {record.uuid}")
    return record
