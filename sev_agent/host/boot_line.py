"""The kernel's boot line: the one in effect, and the one that the next boot will have."""

import re
from dataclasses import dataclass
from typing import Final

from sev_agent.hypervisor.host_files import HostFiles

IN_EFFECT: Final = "proc/cmdline"
GRUB_FILES: Final = ("boot/grub/grub.cfg", "boot/grub2/grub.cfg")
ENTRY_DIRECTORIES: Final = ("boot/loader/entries", "efi/loader/entries", "boot/efi/loader/entries")
_GRUB_ENVIRONMENT: Final = ("boot/grub2/grubenv", "boot/grub/grubenv")

_WORD = re.compile(r'(?:[^\s"]|"[^"]*")+')
_GRUB_LINUX = re.compile(r"^\s*linux(?:efi|16)?\s+(\S+)[ \t]*(.*)$", re.MULTILINE)
_OPTIONS = re.compile(r"^options[ \t]+(.*)$", re.MULTILINE)
_KERNELOPTS = re.compile(r"^kernelopts=(.*)$", re.MULTILINE)
_FOR_REPAIR = frozenset({"single", "recovery", "rescue", "emergency"})


@dataclass(frozen=True, slots=True)
class BootLine:
    """A boot line's words, read as the kernel does: dashes are underscores, and the last of a name counts."""

    words: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> "BootLine":
        words = [word.replace('"', "") for word in _WORD.findall(text)]
        # What follows is for the first process.
        return cls(tuple(words[: words.index("--")] if "--" in words else words))

    def value(self, name: str) -> str | None:
        """The value of the last ``name=value``; an empty text for the bare word; None where it is absent."""
        found = None
        for word in self.words:
            key, _, value = word.partition("=")
            if key.replace("-", "_") == name.replace("-", "_"):
                found = value
        return found

    @property
    def is_for_repair(self) -> bool:
        """Whether the entry is one for repairs, which need no encrypted guests."""
        return not _FOR_REPAIR.isdisjoint(self.words)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A boot line that the boot loader may choose, and the file that has it."""

    source: str
    line: BootLine


def in_effect(files: HostFiles) -> BootLine:
    """Raises ``OSError``."""
    return BootLine.parse(files.text(IN_EFFECT))


def next_boot(files: HostFiles) -> list[Entry]:
    """The boot lines of all entries that are not for repair; none where the boot loader's files are not known.

    Raises ``PermissionError``: distributions hide ``grub.cfg`` from users.
    """
    lines = _grub_lines(files) or _entries(files)
    return [entry for entry in lines if not entry.line.is_for_repair]


def _grub_lines(files: HostFiles) -> list[Entry]:
    for path in GRUB_FILES:
        if (text := files.text_or_none(path)) is None:
            continue
        # A file with blscfg reads the entries; linux lines in it are leftovers then.
        if re.search(r"^\s*blscfg\b", text, re.MULTILINE):
            continue
        where = files.where(path)
        return [Entry(source=where, line=BootLine.parse(found[2])) for found in _GRUB_LINUX.finditer(text)]
    return []


def _entries(files: HostFiles) -> list[Entry]:
    shared = _kernelopts(files)
    found = []
    for directory in ENTRY_DIRECTORIES:
        for name in files.names(directory):
            path = f"{directory}/{name}"
            text = files.text_or_none(path) if name.endswith(".conf") else None
            if text is None or "rescue" in name:
                continue
            options = " ".join(_OPTIONS.findall(text)).replace("$kernelopts", shared)
            found.append(Entry(source=files.where(path), line=BootLine.parse(options)))
    return found


def _kernelopts(files: HostFiles) -> str:
    """What Red Hat's entries before 8.2 all refer to."""
    for path in _GRUB_ENVIRONMENT:
        if (text := files.text_or_none(path)) and (found := _KERNELOPTS.search(text)):
            return found[1]
    return ""
