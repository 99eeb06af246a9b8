"""``sev-agent lab``: a whole cloud on one machine."""

import asyncio
import json
import os
import time
from collections.abc import Callable, Coroutine, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from sev_agent.cli import output
from sev_agent.lab import packages
from sev_agent.lab.cloud import DEFAULT_DIRECTORY, DEFAULT_SLOTS, Lab
from sev_agent.lab.platform.emulator.failures import FAILURES
from sev_agent.lab.platform.emulator.kind import Kind
from sev_agent.lab.progress import OnConsole
from sev_agent.lab.service import LabError
from sev_agent.lab.state import PLATFORMS
from sev_agent.lab.supervisor import ServiceStatus, State, last_lines

NOT_READY = 3
_FOLLOW_INTERVAL = 0.25

app = typer.Typer(
    help="A whole cloud on this machine, for trying, developing and testing.",
    no_args_is_help=True,
    add_completion=False,
)

Directory = Annotated[
    Path, typer.Option("--dir", envvar="SEV_AGENT_LAB_DIR", help="Where the lab lives: every file of it is below.")
]
Cache = Annotated[
    Path | None,
    typer.Option(
        "--cache",
        envvar="SEV_AGENT_LAB_CACHE",
        help="Where downloads and what is made of them is kept; labs may share it.",
        show_default="'cache' in the lab",
    ),
]


@app.command()
def up(
    directory: Directory = DEFAULT_DIRECTORY,
    cache: Cache = None,
    hosts: Annotated[
        int | None,
        typer.Option(min=0, max=99, help="Compute hosts.", show_default="as many as the lab has, at first 1"),
    ] = None,
    slots: Annotated[
        int, typer.Option(min=1, max=1000, help="Encrypted guests that a new host has room for.")
    ] = DEFAULT_SLOTS,
    platforms: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help=f"What the hosts simulate, in their order, with commas between: {', '.join(Kind)}.",
            show_default=f"{', '.join(PLATFORMS)}, and again",
        ),
    ] = None,
    apis: Annotated[
        int | None, typer.Option(min=0, max=9, help="Processes of the compute API.", show_default="1")
    ] = None,
    schedulers: Annotated[int | None, typer.Option(min=0, max=9, help="Scheduler processes.", show_default="1")] = None,
    agents: Annotated[bool, typer.Option(help="Start the host daemon of every host.")] = True,
    install: Annotated[bool, typer.Option(help="Install what is missing of the system packages.")] = True,
) -> None:
    """Bring the lab up: what is up stays as it is, what is missing is started."""
    with output.errors():
        kinds = _kinds(platforms)
        lab = bring_up(
            directory,
            cache,
            lambda lab: lab.up(
                hosts=hosts, slots=slots, platforms=kinds, apis=apis, schedulers=schedulers, agents=agents
            ),
            install=install,
        )
    _say(
        f"  what runs:     sev-agent lab status{_option(lab)}",
        f"  what it says:  sev-agent lab logs{_option(lab)} NAME",
        f"  as a client:   . {lab.directory}/openrc; openstack image list",
        f"  end it:        sev-agent lab down{_option(lab)}",
    )


def bring_up(
    directory: Path, cache: Path | None, up: Callable[[Lab], Coroutine[Any, Any, None]], *, install: bool = True
) -> Lab:
    """Bring the lab in ``directory`` ``up``, showing how it goes. Raises ``LabError``."""
    _need_root()
    started = time.monotonic()
    with OnConsole(console := Console(stderr=True)) as progress:
        lab = Lab(directory, cache=cache, progress=progress)
        if install:
            with progress.step("system packages") as say:
                missing = packages.install("lab", say=progress.note)
                say(f"installed {len(missing)}" if missing else "were there")
        asyncio.run(up(lab))
        console.print(f"The lab in {lab.directory} is up after {time.monotonic() - started:.0f} s.", highlight=False)
    return lab


@app.command()
def status(
    directory: Directory = DEFAULT_DIRECTORY,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show every service of the lab. Exit status 0 if all are ready, 3 if not."""
    with output.errors():
        found = asyncio.run(Lab(directory).status())
    if as_json:
        typer.echo(json.dumps([_as_dict(each) for each in found], indent=2))
    elif not found:
        _say(f"There is no lab in {directory}.")
    else:
        output.screen().print(_table(found))
    if not found or any(each.state is not State.READY for each in found):
        raise typer.Exit(NOT_READY)


@app.command()
def logs(
    name: Annotated[str, typer.Argument(help="A name of 'sev-agent lab status'.")],
    directory: Directory = DEFAULT_DIRECTORY,
    lines: Annotated[int, typer.Option("-n", "--lines", min=0, help="How many lines from the end.")] = 50,
    follow: Annotated[
        bool, typer.Option("-f", "--follow", help="Go on with what is added, until interrupted.")
    ] = False,
) -> None:
    """Show the log of a service."""
    with output.errors():
        lab = Lab(directory)
        path = lab.log_path(name)
        if name not in lab.log_names():
            known = ", ".join(lab.log_names()) or "none yet"
            raise LabError(f"there is no log of '{name}' in {lab.directory}", remedy=f"there are: {known}")
        for line in last_lines(path, lines):
            typer.echo(line)
        if follow:
            _follow(path)


@app.command()
def fail(
    host: Annotated[str, typer.Argument(help="A host of the lab, such as compute-1.")],
    name: Annotated[
        str | None, typer.Argument(help=f"How launches fail: {', '.join(FAILURES)}. Without it, they succeed again.")
    ] = None,
    times: Annotated[int | None, typer.Option(min=1, help="How many launches.", show_default="all")] = None,
    directory: Directory = DEFAULT_DIRECTORY,
) -> None:
    """Let the simulated platform of a host refuse guests, as a real one would."""
    with output.errors():
        failures = Lab(directory).failures(host)
        if name is None:
            failures.disarm()
            return
        if name not in FAILURES:
            raise LabError(f"there is no failure '{name}'", remedy=f"there are: {', '.join(FAILURES)}")
        failures.arm(name, times)


@app.command()
def down(
    directory: Directory = DEFAULT_DIRECTORY,
    purge: Annotated[bool, typer.Option("--purge", help="Remove the lab's files too; its cache stays.")] = False,
) -> None:
    """End every process of the lab, and say which. Files stay, so that the next 'up' goes on from there."""
    _need_root()
    with output.errors(), OnConsole(Console(stderr=True)) as progress:
        lab = Lab(directory, progress=progress)
        ended = asyncio.run(lab.down(purge=purge))
    if ended.left or ended.mounts:
        for process in ended.left:
            _say(f"still there: pid {process.pid} of {process.service}: {process.command}")
        for mount in ended.mounts:
            _say(f"still mounted: {mount}")
        raise typer.Exit(1)
    names = sorted({process.service for process in ended.processes})
    what = f"Ended {len(ended.processes)} processes: {', '.join(names)}." if names else "Nothing ran."
    _say(f"{what} No process of the lab and no mount below {lab.directory} is left.")


def _kinds(names: str | None) -> tuple[Kind, ...]:
    """Raises ``LabError`` for a name that is none."""
    given = [name.strip() for name in names.split(",")] if names else []
    for name in given:
        if name not in set(Kind):
            raise LabError(f"there is no platform '{name}'", remedy=f"there are: {', '.join(Kind)}")
    return tuple(map(Kind, given))


def _need_root() -> None:
    if os.geteuid() != 0:
        typer.echo("sev-agent: the lab makes namespaces and mounts, which only root may; try with sudo", err=True)
        raise typer.Exit(1)


def _say(*lines: str) -> None:
    for line in lines:
        typer.echo(line)


def _option(lab: Lab) -> str:
    return "" if lab.directory == DEFAULT_DIRECTORY else f" --dir {lab.directory}"


def _follow(path: Path) -> None:
    with path.open(errors="replace") as file:
        file.seek(0, os.SEEK_END)
        try:
            while True:
                if text := file.read():
                    typer.echo(text, nl=False)
                else:
                    time.sleep(_FOLLOW_INTERVAL)
        except KeyboardInterrupt:
            return


def _table(found: Iterable[ServiceStatus]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("name", "state", "pid", "since", "platform", "address"):
        table.add_column(column, overflow="fold", no_wrap=column != "address")
    colours = {State.READY: "green", State.STARTING: "yellow", State.STOPPED: "red"}
    for each in found:
        since = datetime.fromtimestamp(each.since, UTC).astimezone().strftime("%m-%d %H:%M:%S") if each.since else "-"
        state = f"[{colours[each.state]}]{each.state}[/]"
        table.add_row(each.name, state, str(each.pid or "-"), since, each.platform or "-", each.address or "-")
    return table


def _as_dict(each: ServiceStatus) -> dict[str, str | int | None]:
    return {
        "name": each.name,
        "kind": each.kind,
        "pid": each.pid,
        "state": each.state.value,
        "since": datetime.fromtimestamp(each.since, UTC).isoformat() if each.since else None,
        "address": each.address or None,
        "platform": each.platform or None,
        "log": str(each.log),
    }
