"""A change to one file of a host, and what is to be done beside the files."""

import difflib
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class FileChange:
    """``path`` is relative to the root; ``before`` is None for a file that is made, ``after`` for one removed."""

    path: str
    before: bytes | None
    after: bytes | None

    def diff(self) -> str:
        """The change as a unified diff."""
        old, new = f"a/{self.path}", f"b/{self.path}"
        lines = difflib.unified_diff(
            _lines(self.before),
            _lines(self.after),
            fromfile="/dev/null" if self.before is None else old,
            tofile="/dev/null" if self.after is None else new,
        )
        return "".join(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines)


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A program that must run after the files were changed, such as ``update-grub``. ``why`` says what it does."""

    arguments: tuple[str, ...]
    why: str

    def __str__(self) -> str:
        return " ".join(self.arguments)

    def as_dict(self) -> dict[str, Any]:
        return {"arguments": list(self.arguments), "why": self.why}


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """All that is to be changed; ``undo`` are the commands that follow when it is taken back."""

    files: tuple[FileChange, ...] = ()
    commands: tuple[Command, ...] = ()
    undo: tuple[Command, ...] = ()

    def __add__(self, other: "Changes") -> "Changes":
        return Changes(
            files=self.files + other.files,
            commands=self.commands + other.commands,
            undo=self.undo + other.undo,
        )

    def __bool__(self) -> bool:
        return bool(self.files or self.commands)


def _lines(content: bytes | None) -> list[str]:
    return [] if content is None else content.decode(errors="replace").splitlines(keepends=True)
