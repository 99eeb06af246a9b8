"""What ``lab up`` and ``lab down`` show while they work."""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress as Bars
from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Column

from sev_agent.lab.service import Say


class Progress(Protocol):
    """Shows steps; several may be open at once."""

    def step(self, name: str) -> AbstractContextManager[Say]:
        """Open a step; the value takes lines about what it does now. An exception shows it as failed."""
        ...

    def note(self, text: str) -> None:
        """Say something that belongs to no step."""
        ...


class Silent:
    """Shows nothing."""

    @contextmanager
    def step(self, name: str) -> Iterator[Say]:  # noqa: ARG002 - the protocol's signature
        yield lambda _: None

    def note(self, text: str) -> None:
        pass


class OnConsole:
    """A spinner for each open step on a terminal, a line for each finished one everywhere. Use as a context."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = Bars(
            SpinnerColumn(),
            TextColumn("{task.description:<22}", table_column=Column(no_wrap=True, min_width=22)),
            TimeElapsedColumn(),
            # What a program says of itself may be long, and gives way.
            TextColumn("{task.fields[doing]}", style="dim", markup=False, table_column=Column(no_wrap=True, ratio=1)),
            console=console,
            transient=True,
            expand=True,
        )

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._console.is_terminal:
            self._bars.stop()

    @contextmanager
    def step(self, name: str) -> Iterator[Say]:
        bar = self._bars.add_task(name, doing="", total=None)
        last = ""

        def say(line: str) -> None:
            nonlocal last
            last = line
            self._bars.update(bar, doing=line)

        started = time.monotonic()
        try:
            yield say
        except BaseException:
            self._line("[red]✗[/]", name, started, last)
            raise
        else:
            self._line("[green]✓[/]", name, started, last)
        finally:
            self._bars.remove_task(bar)

    def note(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False)

    def _line(self, sign: str, name: str, started: float, last: str) -> None:
        took = time.monotonic() - started
        text = f"{sign} {name:<22} {took:6.1f} s  [dim]{escape(last)}[/]"
        # A file or a pipe has no width to keep to.
        if self._console.is_terminal:
            self._console.print(text, highlight=False, no_wrap=True, overflow="ellipsis")
        else:
            self._console.print(text, highlight=False, soft_wrap=True)
