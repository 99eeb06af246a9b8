"""Files changed so that it can be taken back byte for byte, also after a crash in the middle.

What each file was is written down before it is touched. Files are replaced whole; those that are there when a change is
taken back, and are not as this command left them, stay as they are.
"""

import base64
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sev_agent.durable import sync_directory, write_durably
from sev_agent.errors import SevAgentError
from sev_agent.host.preparation.arguments import PreparationRefused
from sev_agent.host.preparation.change import Command, FileChange
from sev_agent.hypervisor.host_files import HostFiles

LEDGER: Final = "var/lib/sev-agent-prepare/ledger.json"
"""Not in the daemon's own directory: who may write there must not tell root what to write where."""

_FORMAT = 1
_FILE_MODE = 0o644
_DIRECTORY_MODE = 0o755


class PreparationFailed(SevAgentError):
    """A file cannot be written."""

    code = "preparation.failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Original:
    """A file as it was: ``content`` None if it was not there.

    ``written`` are the SHA-256 of all that was put in its place, the last of which a crash may have kept from the disk.
    """

    content: bytes | None
    mode: int
    written: tuple[str, ...]


class Ledger:
    """What this command has changed below one root. All calls block on the disk."""

    def __init__(self, files: HostFiles) -> None:
        self._files = files
        self._originals: dict[str, Original] = {}
        self._directories: list[str] = []
        self._undo: list[tuple[str, ...]] = []
        self._load()

    @property
    def is_empty(self) -> bool:
        return not self._originals and not self._undo

    def apply(self, changes: Sequence[FileChange], undo: Sequence[Command]) -> None:
        """Write every file. Raises ``PreparationRefused`` for a link in a file's place, ``PreparationFailed``."""
        for change in changes:
            self._refuse_link(change.path)
            known = self._originals.get(change.path)
            self._originals[change.path] = Original(
                content=change.before if known is None else known.content,
                mode=self._mode(change.path) if known is None else known.mode,
                written=(*(() if known is None else known.written), _digest(change.after or b"")),
            )
        self._undo += [command.arguments for command in undo if command.arguments not in self._undo]
        try:
            for change in changes:
                self._note_directories(change.path)
            self._save()
            for change in changes:
                self._write(change.path, change.after, self._originals[change.path].mode)
        except OSError as error:
            raise _failed(error) from error

    def reversal(self) -> tuple[list[FileChange], list[Command]]:
        """What taking everything back would change. Raises ``PreparationRefused`` where a file was changed since."""
        changes = []
        for path, original in sorted(self._originals.items()):
            present = self._files.content(path) if self._files.exists(path) else None
            if present == original.content:
                continue  # a crash came before it was written, or somebody took it back already
            if present is None or _digest(present) not in original.written:
                what = "is gone" if present is None else "was changed"
                raise PreparationRefused(
                    f"{self._files.where(path)} {what} since this command wrote it",
                    remedy=f"bring it in order by hand ({self._files.where(LEDGER)} has what it was), then remove that",
                )
            changes.append(FileChange(path=path, before=present, after=original.content))
        return changes, [Command(arguments=arguments, why="as before") for arguments in self._undo]

    def restore(self, changes: Sequence[FileChange]) -> None:
        """Make the files as they were. Raises ``PreparationFailed``."""
        try:
            for change in changes:
                self._write(change.path, change.after, self._originals[change.path].mode)
        except OSError as error:
            raise _failed(error) from error

    def forget(self) -> None:
        """Remove this ledger, and the directories that were made. Raises ``PreparationFailed``.

        For the end, when the programs that follow have run: if one fails, taking back can be tried again.
        """
        try:
            path = self._files.resolve(LEDGER)
            path.unlink(missing_ok=True)
            sync_directory(path.parent)
            for directory in reversed(self._directories):
                target = self._files.resolve(directory)
                if target.is_dir() and not any(target.iterdir()):
                    target.rmdir()
        except OSError as error:
            raise _failed(error) from error
        self._originals, self._directories, self._undo = {}, [], []

    def _write(self, path: str, content: bytes | None, mode: int) -> None:
        target = self._files.resolve(path)
        if content is None:
            target.unlink(missing_ok=True)
            sync_directory(target.parent)
        else:
            write_durably(target, content, mode=mode)

    def _note_directories(self, path: str) -> None:
        """Make the directories above ``path``, and remember those that were not there."""
        for directory in reversed(Path(path).parents[:-1]):
            target = self._files.resolve(str(directory))
            if not target.exists():
                target.mkdir(mode=_DIRECTORY_MODE)
                self._directories.append(str(directory))

    def _mode(self, path: str) -> int:
        node = self._files.node(path)
        return _FILE_MODE if node is None else node.mode

    def _refuse_link(self, path: str) -> None:
        if (self._files.root / path).is_symlink():
            raise PreparationRefused(
                f"{self._files.where(path)} is a link", remedy="change what it leads to by hand, and run this again"
            )

    def _save(self) -> None:
        self._note_directories(LEDGER)
        document = {
            "format": _FORMAT,
            "directories": self._directories,
            "undo": self._undo,
            "files": {
                path: {
                    "content": None if original.content is None else base64.b64encode(original.content).decode(),
                    "mode": original.mode,
                    "written": list(original.written),
                }
                for path, original in self._originals.items()
            },
        }
        write_durably(self._files.resolve(LEDGER), json.dumps(document, indent=1).encode())

    def _load(self) -> None:
        if not self._files.exists(LEDGER):
            return
        try:
            document = _parse(self._files.text(LEDGER))
            self._directories = [str(directory) for directory in document["directories"]]
            self._undo = [tuple(map(str, arguments)) for arguments in document["undo"]]
            self._originals = {
                str(path): Original(
                    content=None if row["content"] is None else base64.b64decode(row["content"]),
                    mode=int(row["mode"]),
                    written=tuple(map(str, row["written"])),
                )
                for path, row in document["files"].items()
            }
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise PreparationRefused(
                f"{self._files.where(LEDGER)} cannot be read: {error}",
                remedy="bring the files in order by hand, then remove it",
            ) from error


def _parse(text: str) -> Any:
    """Raises ``ValueError``, ``KeyError`` and ``TypeError`` for what is no ledger."""
    document = json.loads(text)
    if document["format"] != _FORMAT:
        raise ValueError(f"its format is {document['format']}, not {_FORMAT}")
    return document


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _failed(error: OSError) -> PreparationFailed:
    who = "" if os.geteuid() == 0 else "run this as root"
    return PreparationFailed(f"cannot write {error.filename}: {error.strerror}", remedy=who or "look at the disk")
