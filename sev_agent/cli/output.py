"""How the commands speak: tables and colour on a terminal, JSON with ``--json``, errors on standard error."""

import contextlib
import json
import os
import re
import sys
from collections.abc import Iterator
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sev_agent.cli.daemon import CONFIG_FAULT
from sev_agent.config import ConfigurationError
from sev_agent.errors import InvalidRequest, NotFound, SevAgentError, Unavailable

FAILED: Final = 1
WRONG_USAGE: Final = 2
NOT_FOUND: Final = 4
UNAVAILABLE: Final = 5

# ECMA-48, section 5.4: parameter bytes, intermediate bytes, a final byte; and 8.3.89, what sets a window's title.
_CONTROL_SEQUENCE: Final = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)")

_WIDE: Final = 400

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]

_STATES: Final = {
    "active": "green",
    "stopped": "yellow",
    "building": "cyan",
    "deleting": "cyan",
    "failing": "red",
    "error": "red",
}


class WrongUsage(InvalidRequest):
    """The command line has a value that cannot be; ``field`` is its option or argument."""

    code = "usage"


@contextlib.contextmanager
def errors() -> Iterator[None]:
    """Print an error for the person who must act, and exit. A file that cannot be used is one, too.

    Exit status: 2 for a value that cannot be, 4 for what does not exist, 5 for a service that cannot be reached, 78 for
    a configuration that cannot be used, else 1.
    """
    try:
        yield
    except OSError as error:
        if error.filename is None:
            raise
        _tell(f"{error.filename}: {error.strerror}")
        raise typer.Exit(FAILED) from None
    except SevAgentError as error:
        _tell(str(error))
        raise typer.Exit(_status(error)) from None


def _status(error: SevAgentError) -> int:
    match error:
        case WrongUsage():
            return WRONG_USAGE
        case ConfigurationError():
            return CONFIG_FAULT
        case Unavailable():
            return UNAVAILABLE
        case NotFound():
            return NOT_FOUND
        case _:
            # What a host says of itself: its class is not ours.
            return NOT_FOUND if error.code.endswith("not_found") else FAILED


def _tell(message: str) -> None:
    text = printable(f"sev-agent: {message}")
    Console(stderr=True).print(text, style="red", markup=False, highlight=False, soft_wrap=True)


def print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2))


def printable(text: str) -> str:
    """``text`` without what would steer the operator's terminal: guests and hosts write what they like."""
    plain = _CONTROL_SEQUENCE.sub("", text.replace("\r\n", "\n"))
    return "".join(c for c in plain if c.isprintable() or c in "\n\t")


def cell(value: object) -> str:
    """``value`` as a table shows it: no markup, no control sequences."""
    return "-" if value is None or value == "" else escape(printable(str(value)))


def state(name: str) -> str:
    """``name`` in its colour."""
    return f"[{_STATES.get(name, 'white')}]{cell(name)}[/]"


def screen() -> Console:
    """Standard output; as a file or a pipe it has no width to keep to."""
    return Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else _WIDE, highlight=False)


def table(*columns: str) -> Table:
    result = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        result.add_column(column, no_wrap=column != "name", overflow="fold")
    return result


def details(pairs: dict[str, Any]) -> Table:
    """One thing, a line for each of its fields; values are ``cell`` or ``state``."""
    result = Table(box=None, pad_edge=False, show_header=False)
    result.add_column(style="bold", no_wrap=True)
    result.add_column(overflow="fold")
    for name, value in pairs.items():
        result.add_row(name, str(value))
    return result
