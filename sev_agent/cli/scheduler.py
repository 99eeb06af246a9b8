"""``sev-agent scheduler``: the daemon that chooses a host for each server."""

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from sev_agent.cli.lean import without_rich
from sev_agent.cli.run import CONFIG_FAULT
from sev_agent.config import SchedulerConfig, load_as
from sev_agent.errors import SevAgentError

app = typer.Typer(add_completion=False)


@app.command()
def scheduler(
    config: Annotated[
        Path, typer.Option("--config", "-c", envvar="SEV_AGENT_CONFIG", help="The daemon's TOML file.")
    ] = Path("/etc/sev-agent/sev-agent-scheduler.toml"),
    check: Annotated[bool, typer.Option("--check", help="Only read the configuration, and say what is wrong.")] = False,
) -> None:
    """Choose hosts for servers until SIGTERM. Any number of schedulers may run side by side.

    Exit status: 0 after a stop that was asked for, 78 when the configuration cannot be used, 1 otherwise.
    """
    try:
        settings = load_as(SchedulerConfig, config)
    except SevAgentError as error:
        typer.echo(f"sev-agent: {error}", err=True)
        raise typer.Exit(CONFIG_FAULT) from None
    if check:
        typer.echo(f"{config} is in order.")
        return
    with without_rich():
        from sev_agent import log  # noqa: PLC0415 - it imports structlog

    log.configure(settings.log)
    # Imported here: asking for help or checking a file needs no broker.
    from sev_agent.scheduler.daemon import run_scheduler  # noqa: PLC0415

    try:
        asyncio.run(run_scheduler(settings))
    except (SevAgentError, OSError) as error:
        typer.echo(f"sev-agent: {error}", err=True)
        raise typer.Exit(1) from None
