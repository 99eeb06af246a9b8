"""Notifications that the broker has not taken yet, on disk: a journal that survives a loss of power at any byte."""

import contextlib
import os
import re
import zlib
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Self

import structlog
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sev_agent.durable import discard_unfinished, make_directory, write_durably
from sev_agent.messaging.envelope import Priority

log = structlog.stdlib.get_logger(__name__)

_NAME: Final = "spool.journal"
_SLACK_BYTES: Final = 1024 * 1024
"""Bytes of dead lines that are borne beyond those of the living before the journal is written anew."""

_MAX_BYTES: Final = 1024 * 1024 * 1024
"""A larger file is none of ours."""

_CHECKSUM_DIGITS: Final = 8
_TORN: Final = re.compile(rb"[0-9a-f]{0,7}|[0-9a-f]{8}( \{.*| )?", re.DOTALL)
"""How a line of ours begins, up to where a crash cut it."""


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Letter(_Value):
    """A notification as it travels. ``body`` is the wire's text, the same at every attempt.

    ``sequence`` rises from letter to letter of a host, over its restarts; by ``message_id`` listeners know a
    repetition.
    """

    sequence: int = Field(ge=0)
    message_id: str
    event_type: str
    priority: Priority
    body: str

    @property
    def is_progress(self) -> bool:
        """Whether it tells of a step on the way, worth little once a later one is told."""
        return self.event_type.endswith(".progress")

    @property
    def size(self) -> int:
        """Bytes that it counts for."""
        return len(self.body)


class _Line(_Value):
    """One entry of the journal: a letter that came, or the sequences of those that left."""

    letter: Letter | None = None
    gone: tuple[int, ...] = ()

    def encode(self) -> bytes:
        text = self.model_dump_json(exclude_defaults=True).encode()
        return b"%08x %s\n" % (zlib.crc32(text), text)

    @classmethod
    def decode(cls, line: bytes) -> Self:
        """Raises ``ValueError`` for what is torn or foreign."""
        checksum, _, text = line.partition(b" ")
        if len(checksum) != _CHECKSUM_DIGITS or int(checksum, 16) != zlib.crc32(text):
            raise ValueError("the checksum is wrong")
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise ValueError(str(error)) from None


class Spool:
    """The journal below ``directory``: lines that are only ever appended, each with its checksum.

    A line that a crash cut short is the last one, and is left out; it was never promised to anyone. A file that is
    damaged elsewhere, or is no journal, is set aside beside the new one, with a log line, and its whole lines are kept;
    where the disk has no room for a second name, it stays until the first commit replaces it.
    Its methods block on the disk, and are called one at a time.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / _NAME
        self._kept: dict[int, Letter] = {}
        self._bytes = 0
        self._file: int | None = None
        self._is_behind = False

    def open(self) -> list[Letter]:
        """The letters that no broker took before the last end, oldest first.

        Raises ``OSError`` where the directory cannot be used.
        """
        make_directory(self._path.parent, mode=0o700)
        discard_unfinished(self._path.parent)
        damage = self._read()
        if damage is not None:
            kept_as = self._path.with_name(f"{_NAME}.{datetime.now(UTC):%Y%m%dT%H%M%S.%f}")
            try:
                # A second name, and not a rename: what could be read of it must not be without a file for a moment.
                kept_as.hardlink_to(self._path)
            except OSError as error:
                log.error("spool.damaged", path=str(self._path), reason=damage, error=str(error))  # noqa: TRY400 - no fault of ours
            else:
                log.error("spool.set_aside", path=str(self._path), kept_as=str(kept_as), reason=damage)
                with contextlib.suppress(OSError):
                    self._rewrite()
        # Otherwise the first commit writes the file anew: until then a full disk matters to nobody.
        return sorted(self._kept.values(), key=lambda letter: letter.sequence)

    def commit(self, came: Sequence[Letter], gone: Iterable[int]) -> None:
        """Append what came and what left. What came is on the disk, whatever happens, once this returns.

        What left is only written: if a loss of power undoes that, it is sent twice, which at least once allows.
        Raises ``OSError``; then the next commit writes down everything again, in a new file.
        """
        gone = [sequence for sequence in gone if self._kept.pop(sequence, None) is not None]
        self._kept |= {letter.sequence: letter for letter in came}
        if not came and not gone and not self._is_behind:
            return
        lines = [_Line(letter=letter).encode() for letter in came]
        if gone:
            lines.append(_Line(gone=tuple(gone)).encode())
        try:
            self._append(b"".join(lines), sync=bool(came))
        except OSError:
            # What a failed write or fsync left behind is unknown.
            self.close()
            self._is_behind = True
            raise
        self._is_behind = False

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _append(self, content: bytes, *, sync: bool) -> None:
        living = sum(letter.size for letter in self._kept.values()) if self._bytes > _SLACK_BYTES else 0
        if self._file is None or self._bytes > 2 * living + _SLACK_BYTES:
            self._rewrite()
        elif not self._kept:
            os.ftruncate(self._file, 0)
            self._bytes = 0
        else:
            _write_all(self._file, content)
            self._bytes += len(content)
            if sync:
                os.fdatasync(self._file)

    def _rewrite(self) -> None:
        self.close()
        content = b"".join(_Line(letter=letter).encode() for letter in self._kept.values())
        write_durably(self._path, content)
        self._file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        self._bytes = len(content)

    def _read(self) -> str | None:
        """Fill ``_kept``, and say what is wrong with the file beyond a torn end."""
        try:
            if self._path.stat().st_size > _MAX_BYTES:
                return f"larger than {_MAX_BYTES} bytes"
            *lines, last = self._path.read_bytes().split(b"\n")
        except FileNotFoundError:
            return None
        damage = None
        for number, line in enumerate([*lines, last] if last else lines, start=1):
            try:
                self._replay(_Line.decode(line))
            except ValueError as error:
                if number <= len(lines) or not _TORN.fullmatch(line):
                    damage = damage or f"line {number}: {error}"
        return damage

    def _replay(self, entry: _Line) -> None:
        if entry.letter is not None:
            self._kept[entry.letter.sequence] = entry.letter
        for sequence in entry.gone:
            self._kept.pop(sequence, None)


def _write_all(descriptor: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]
