"""Reading of a host's files below one root, bounded, so that a captured host can be judged as a live one."""

import gzip
import io
import stat
import zlib
from dataclasses import dataclass
from pathlib import Path

MAX_BYTES = 1024 * 1024
"""No file that is read here is larger; of a longer one, the beginning counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A file's permissions. ``mode`` has the bits below 0o7777; owner and group are numbers."""

    mode: int
    uid: int
    gid: int
    is_device: bool


class HostFiles:
    """The files of the host below ``root``. All calls block shortly.

    Paths are relative to the root. What a link leads to outside of the root is as absent: a captured tree must not
    show the machine that it is judged on.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._real_root = root.resolve()

    @property
    def is_live(self) -> bool:
        """Whether this is the machine itself."""
        return self._real_root == Path("/")

    def where(self, path: str) -> str:
        """The path as it is told to a person."""
        return str(self.root / path)

    def text(self, path: str, *, limit: int = MAX_BYTES) -> str:
        """Raises ``FileNotFoundError``, ``PermissionError`` and any other ``OSError``."""
        return self.content(path, limit=limit).decode(errors="replace")

    def content(self, path: str, *, limit: int = MAX_BYTES) -> bytes:
        with self.resolve(path).open("rb") as file:
            return file.read(limit)

    def unpacked(self, path: str) -> str:
        """The text of a gzip file. Raises ``OSError``."""
        try:
            with gzip.open(io.BytesIO(self.content(path))) as file:
                return file.read(MAX_BYTES).decode(errors="replace")
        except (EOFError, zlib.error) as error:
            raise OSError(f"{self.where(path)} is no whole gzip file: {error}") from error

    def text_or_none(self, path: str) -> str | None:
        """The text; None where it is absent or is no plain file. Raises ``PermissionError``."""
        try:
            return self.text(path)
        except PermissionError:
            raise
        except OSError:
            return None

    def names(self, path: str) -> list[str]:
        """What is in a directory, sorted; nothing where there is none."""
        try:
            return sorted(entry.name for entry in self.resolve(path).iterdir())
        except PermissionError:
            raise
        except OSError:
            return []

    def exists(self, path: str) -> bool:
        try:
            return self.resolve(path).exists()
        except OSError:
            return False

    def node(self, path: str) -> Node | None:
        """Its permissions; None where it is absent."""
        try:
            status = self.resolve(path).stat()
        except PermissionError:
            raise
        except OSError:
            return None
        return Node(
            mode=stat.S_IMODE(status.st_mode),
            uid=status.st_uid,
            gid=status.st_gid,
            is_device=stat.S_ISCHR(status.st_mode),
        )

    def resolve(self, path: str) -> Path:
        """The file itself. Raises ``FileNotFoundError`` where that lies outside of the root."""
        try:
            found = (self.root / path).resolve()
        except RuntimeError as error:
            raise FileNotFoundError(f"{self.where(path)} is a loop of links") from error
        if not found.is_relative_to(self._real_root):
            raise FileNotFoundError(f"{self.where(path)} leads out of {self.root}")
        return found
