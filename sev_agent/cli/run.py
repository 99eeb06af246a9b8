"""``sev-agent run``: the host daemon."""

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from sev_agent.cli.lean import without_rich
from sev_agent.config import load
from sev_agent.errors import HostTaken, SevAgentError

CONFIG_FAULT = 78
"""``EX_CONFIG`` of sysexits.h: restarting does not help; the unit file names it too."""

HOST_TAKEN = 75
"""``EX_TEMPFAIL``: another daemon has this host. It may be a leftover, so the service manager tries again, bounded."""

app = typer.Typer(add_completion=False)


@app.command()
def run(
    config: Annotated[
        Path, typer.Option("--config", "-c", envvar="SEV_AGENT_CONFIG", help="The daemon's TOML file.")
    ] = Path("/etc/sev-agent/sev-agent.toml"),
    check: Annotated[bool, typer.Option("--check", help="Only read the configuration, and say what is wrong.")] = False,
) -> None:
    """Run the daemon of this compute host until SIGTERM.

    Exit status: 0 after a stop that was asked for, 75 when another daemon serves this host, 78 when the
    configuration cannot be used, 1 otherwise.
    """
    try:
        settings = load(config)
    except SevAgentError as error:
        typer.echo(f"sev-agent: {error}", err=True)
        raise typer.Exit(CONFIG_FAULT) from None
    if check:
        typer.echo(f"{config} is in order.")
        return
    with without_rich():
        from sev_agent import log  # noqa: PLC0415 - it imports structlog

    log.configure(settings.log)
    # Imported here: asking for help or checking a file needs neither libvirt nor a broker.
    from sev_agent.compute.agent import run_agent  # noqa: PLC0415

    try:
        asyncio.run(run_agent(settings))
    except SevAgentError as error:
        typer.echo(f"sev-agent: {error}", err=True)
        raise typer.Exit(HOST_TAKEN if isinstance(error, HostTaken) else 1) from None
    except OSError as error:
        typer.echo(f"sev-agent: {error}", err=True)
        raise typer.Exit(1) from None
