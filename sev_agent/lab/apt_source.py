"""The backports suite of this machine's distribution, as a package source derived from the machine's own.

Standard library only: this runs before anything is installed. Formats: sources.list(5).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_ONE_LINE = re.compile(r"^(?P<type>deb)\s+(?:\[(?P<options>[^\]]*)\]\s+)?(?P<uri>\S+)\s+(?P<suite>\S+)\s+(?P<rest>.+)$")
_KEPT_FIELDS = ("signed-by", "trusted", "architectures")
_WANTED_COMPONENT = "main"


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file for ``sources.list.d``: its name and what it says."""

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class _Entry:
    """One entry, with the text of the same entry for another suite."""

    suites: tuple[str, ...]
    components: tuple[str, ...]
    extension: str
    template: str


def has_suite(apt: Path, suite: str) -> bool:
    """Whether a source below ``apt`` (``/etc/apt``) offers ``suite``."""
    return any(suite in entry.suites and _WANTED_COMPONENT in entry.components for entry in _entries(apt))


def derive(apt: Path, codename: str) -> SourceFile | None:
    """A source for the backports of ``codename``, from where the machine takes ``codename`` itself.

    In the same format, with the same address, key and options. ``None`` if the machine has no such source.
    """
    for entry in _entries(apt):
        if codename in entry.suites and _WANTED_COMPONENT in entry.components:
            suite = f"{codename}-backports"
            text = entry.template.replace("\0", suite)
            return SourceFile(f"{suite}.{entry.extension}", f"# Added by sev-agent lab.\n{text}")
    return None


def _entries(apt: Path) -> Iterator[_Entry]:
    files = [apt / "sources.list", *sorted((apt / "sources.list.d").glob("*"))]
    for path in files:
        try:
            text = path.read_text(errors="replace")
        except OSError:
            continue
        match path.suffix:
            case ".list":
                yield from _one_line_entries(text)
            case ".sources":
                yield from _deb822_entries(text)


def _one_line_entries(text: str) -> Iterator[_Entry]:
    for line in text.splitlines():
        found = _ONE_LINE.match(line.partition("#")[0].strip())
        if found is None:
            continue
        options = f"[{found['options']}] " if found["options"] else ""
        yield _Entry(
            suites=(found["suite"],),
            components=tuple(found["rest"].split()),
            extension="list",
            template=f"deb {options}{found['uri']} \0 {_WANTED_COMPONENT}\n",
        )


def _deb822_entries(text: str) -> Iterator[_Entry]:
    for fields in _stanzas(text):
        types, uris = fields.get("types", "").split(), fields.get("uris", "").split()
        if "deb" not in types or not uris or fields.get("enabled", "yes").strip().lower() in {"no", "false", "0"}:
            continue
        # A value as it stands, since a key may be written out over many lines.
        kept = "".join(f"{name.title()}:{fields[name]}\n" for name in _KEPT_FIELDS if name in fields)
        yield _Entry(
            suites=tuple(fields.get("suites", "").split()),
            components=tuple(fields.get("components", "").split()),
            extension="sources",
            template=f"Types: deb\nURIs: {' '.join(uris)}\nSuites: \0\nComponents: {_WANTED_COMPONENT}\n{kept}",
        )


def _stanzas(text: str) -> Iterator[dict[str, str]]:
    """Each stanza's fields, names in lower case, continuation lines with their line breaks."""
    fields: dict[str, str] = {}
    name = ""
    for line in text.splitlines():
        if line.startswith("#"):
            continue
        if not line.strip():
            if fields:
                yield fields
            fields, name = {}, ""
        elif line[0] in " \t":
            if name:
                fields[name] += f"\n{line}"
        else:
            name, _, value = line.partition(":")
            name = name.strip().lower()
            fields[name] = value.rstrip()
    if fields:
        yield fields
