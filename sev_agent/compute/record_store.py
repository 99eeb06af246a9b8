"""The journal of a host: one durable record for each instance, from its acceptance to its removal."""

import errno
import json
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self
from uuid import UUID

import structlog
from pydantic import ValidationError

from sev_agent.compute.instance_files import RECORD_NAME, InstanceFiles
from sev_agent.compute.record import DISK_REMEDY, Record
from sev_agent.compute.shelf import MAX_RECORD_BYTES, Shelf
from sev_agent.compute.shelf import NAME as SHELF
from sev_agent.durable import discard_unfinished, make_directory, sync_directory, write_durably
from sev_agent.errors import Conflict, Exhausted
from sev_agent.messaging.spool import Letter

log = structlog.stdlib.get_logger(__name__)


class Superseded(Conflict):
    """Another request was accepted meanwhile: what comes of the earlier one may not be written any more."""

    code = "instance.superseded"


class JournalFailed(Exhausted):
    """The host cannot write down what it would have to remember; another host may."""

    code = "journal.failed"


@dataclass(frozen=True, slots=True)
class _Gone:
    """The record of an instance that is gone and owes nothing, as small as it can be had: hosts remember thousands."""

    updated_at: datetime
    content: bytes

    @classmethod
    def of(cls, record: Record) -> Self:
        return cls(record.updated_at, _dump(record))

    @property
    def record(self) -> Record:
        return Record.model_validate_json(self.content)


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
    _gone: dict[UUID, _Gone] = field(default_factory=dict)
    _guard: threading.Lock = field(default_factory=threading.Lock)
    _writing: dict[UUID, threading.Lock] = field(default_factory=dict)
    _left_out: frozenset[str] = frozenset()

    def open(self) -> None:
        """Read every record. Raises ``OSError`` where the directory itself cannot be used."""
        make_directory(self.directory, mode=0o711)
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
                    self._fold(record)
        self._left_out = shelf.left_out
        self.bases_set_aside = shelf.bases()

    def files(self, uuid: UUID) -> InstanceFiles:
        return InstanceFiles(self.directory / str(uuid))

    def get(self, uuid: UUID) -> Record | None:
        if (record := self._records.get(uuid)) is not None:
            return record
        gone = self._gone.get(uuid)
        return None if gone is None else gone.record

    def __iter__(self) -> Iterator[Record]:
        """All but those that went a while ago and owe nothing."""
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
            present = self.get(record.uuid)
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
                f"the record of instance {record.uuid} cannot be written: {error.strerror}", remedy=DISK_REMEDY
            ) from error
        self._records[record.uuid] = record
        self._gone.pop(record.uuid, None)

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
            write_durably(files.record, _dump(record, indent=1))
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

        No more than ``most`` are kept, the latest ones, in little memory; none is removed that owes a letter.
        """
        for record in self:
            self._fold(record)
        limit = datetime.now(UTC) - older_than
        gone = sorted(self._gone.items(), key=lambda item: item[1].updated_at)
        surplus = len(gone) - most
        for place, (uuid, one) in enumerate(gone):
            if place < surplus or one.updated_at < limit:
                self._forget(uuid, one)

    def _fold(self, record: Record) -> None:
        """Keep ``record`` small, if that is all there is to come of it."""
        if not record.state.is_gone or record.owed:
            return
        with self._lock(record.uuid):
            if self._records.get(record.uuid) is record:
                # In this order: who asks meanwhile finds it in one place or the other.
                self._gone[record.uuid] = _Gone.of(record)
                del self._records[record.uuid]

    def _forget(self, uuid: UUID, gone: _Gone) -> None:
        with self._lock(uuid):
            # What was sent to this host once more meanwhile is here again.
            if self._gone.get(uuid) is gone:
                shutil.rmtree(self.files(uuid).directory, ignore_errors=True)
                del self._gone[uuid]
                self._writing.pop(uuid, None)


def _dump(record: Record, indent: int | None = None) -> bytes:
    return record.model_dump_json(indent=indent, exclude_defaults=True).encode()


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
        content = file.read(MAX_RECORD_BYTES + 1)
    if len(content) > MAX_RECORD_BYTES:
        raise ValueError(f"larger than {MAX_RECORD_BYTES} bytes")
    try:
        record = Record.model_validate_json(content)
    except ValidationError as error:
        raise ValueError(json.dumps(error.errors(include_url=False, include_input=False), default=str)) from None
    if str(record.uuid) != directory.name:
        raise ValueError(f"speaks of instance {record.uuid}")
    return record
