"""The status page: what an operator asks first, as one HTML document that needs nothing else to be read."""

import time
from base64 import b64encode
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from typing import Final
from xml.etree import ElementTree as ET

from prometheus_client import Counter

from sev_agent import __version__
from sev_agent.observe.health import Condition, Dependency, Health

_LONGEST_TEXT: Final = 500
_FOR_PROGRAMS: Final = ("readyz", "healthz", "metrics")
_STYLE: Final = """
:root { color-scheme: light dark; font: 1rem/1.5 system-ui, sans-serif }
body { max-width: 70rem; margin: 0 auto; padding: 1rem }
section { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .2rem 1.5rem .2rem 0; text-align: start; vertical-align: top; border-bottom: 1px solid #8886 }
tbody th { font-weight: normal }
th, td:not(:last-child) { white-space: nowrap }
.look { color: #a40000 }
@media (prefers-color-scheme: dark) { .look { color: #ff9a8c } }
"""


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a table: its first cell names it. ``look`` marks what a person should look at."""

    cells: tuple[str, ...]
    look: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table under its heading; ``note`` says what the rows do not: that there are none, or more."""

    heading: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    note: str = ""


class StatusPage:
    """Whether a daemon is ready, what it leans on, and what ``tables`` tells of its own work at that moment.

    ``subject`` says whose page it is. ``tables`` reads what the daemon has in memory: it may neither wait nor fail.
    """

    def __init__(self, subject: str, *, health: Health, tables: Callable[[], Iterable[Table]] = tuple) -> None:
        self._subject = subject
        self._health = health
        self._tables = tables
        self.headers = {
            "Content-Security-Policy": _policy(),
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cache-Control": "no-store",
        }
        """What a browser is told of the page: to load, run and keep nothing."""

    def html(self) -> str:
        """The whole document. All text in it may come from outside: it is escaped, and of bounded length."""
        verdict = "ready" if self._health.is_ready else "not ready"
        tables = (_dependencies(self._health), *self._tables())
        root = _element(
            "html",
            _element(
                "head",
                _element("meta", charset="utf-8"),
                _element("title", _text(f"{self._subject}: {verdict}")),
                _element("meta", name="viewport", content="width=device-width, initial-scale=1"),
                _element("meta", name="color-scheme", content="light dark"),
                _element("style", _STYLE),
            ),
            _element(
                "body",
                _element(
                    "header",
                    _element("h1", _text(self._subject)),
                    _element("p", _element("strong", verdict, **_look(not self._health.is_ready))),
                    _element(
                        "p", f"sev-agent {__version__}, {_at(time.time())}. ", _element("a", "Ask again", href=".")
                    ),
                ),
                _element("main", *(_section(table, f"table-{number}") for number, table in enumerate(tables))),
                _element("footer", _element("p", "For programs:", *map(_link, _FOR_PROGRAMS))),
            ),
            lang="en",
        )
        ET.indent(root, "")
        return f"<!DOCTYPE html>\n{ET.tostring(root, encoding='unicode', method='html')}\n"


def counted(heading: str, counter: Counter) -> Table:
    """What ``counter`` has counted since the daemon's start: a row for each combination of its labels."""
    samples = [
        sample for family in counter.collect() for sample in family.samples if sample.name == f"{family.name}_total"
    ]
    labels = tuple(samples[0].labels) if samples else ()
    return Table(
        heading=f"{heading} since the start",
        columns=(*labels, "number"),
        rows=tuple(Row((*sample.labels.values(), f"{sample.value:.0f}")) for sample in samples),
        note="" if samples else "None.",
    )


def ago(moment: float) -> str:
    """How long ago ``moment`` (seconds of ``time.time``) was, in two units; nothing where the clock was set back."""
    seconds = max(0, int(time.time() - moment))
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if days:
        return f"{days} d {hours % 24} h"
    if hours:
        return f"{hours} h {minutes % 60} min"
    return f"{minutes} min {seconds % 60} s" if minutes else f"{seconds} s"


def _at(moment: float) -> str:
    return f"{datetime.fromtimestamp(moment, UTC):%Y-%m-%d %H:%M:%S} UTC"


def _dependencies(health: Health) -> Table:
    def row(name: Dependency, condition: Condition) -> Row:
        state, since = "up" if condition.up else "down", condition.since
        return Row((name.value, state, _at(since), ago(since), condition.reason), look=not condition.up)

    return Table(
        heading="What it leans on",
        columns=("Service", "State", "Since", "For", "Reason"),
        rows=tuple(row(name, condition) for name, condition in health.conditions.items()),
    )


def _section(table: Table, identity: str) -> ET.Element:
    labelled = {"aria-labelledby": identity}
    section = _element("section", _element("h2", _text(table.heading), id=identity), **labelled)
    if table.rows:
        head = _element("tr", *(_element("th", _text(column), scope="col") for column in table.columns))
        body = _element("tbody", *map(_row, table.rows))
        section.append(_element("table", _element("thead", head), body, **labelled))
    if table.note:
        section.append(_element("p", _text(table.note)))
    return section


def _row(row: Row) -> ET.Element:
    name, *values = map(_text, row.cells)
    cells = (_element("th", name, scope="row"), *(_element("td", value) for value in values))
    return _element("tr", *cells, **_look(row.look))


def _look(look: bool) -> dict[str, str]:  # noqa: FBT001 - its name says it
    return {"class": "look"} if look else {}


def _link(path: str) -> ET.Element:
    return _element("span", " ", _element("a", f"/{path}", href=path))


def _element(tag: str, *content: ET.Element | str, **attributes: str) -> ET.Element:
    """An element with its ``content``, of which text may only come first."""
    element = ET.Element(tag, attributes)
    for each in content:
        if isinstance(each, str):
            element.text = each
        else:
            element.append(each)
    return element


def _text(text: str) -> str:
    """``text`` without what a terminal, a browser or a reader could take for something else; the library escapes it."""
    shown = text if len(text) <= _LONGEST_TEXT else f"{text[:_LONGEST_TEXT]}…"
    return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in " ".join(shown.split()))


def _policy() -> str:
    """Nothing may be loaded, run, sent or framed; the page's own style is known by its digest."""
    digest = b64encode(sha256(_STYLE.encode()).digest()).decode()
    nothing = ("default-src", "base-uri", "form-action", "frame-ancestors")
    return "; ".join([*(f"{what} 'none'" for what in nothing), f"style-src 'sha256-{digest}'"])
