"""``sev-agent api``: the compute API."""

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from sev_agent.cli.lean import without_rich
from sev_agent.cli.run import CONFIG_FAULT
from sev_agent.config import ApiConfig, ConfigurationError, load_as
from sev_agent.errors import SevAgentError

ConfigFile = Annotated[Path, typer.Option("--config", "-c", envvar="SEV_AGENT_CONFIG", help="The API's TOML file.")]
DEFAULT_CONFIG = Path("/etc/sev-agent/sev-agent-api.toml")

app = typer.Typer(add_completion=False)


@app.command()
def api(
    config: ConfigFile = DEFAULT_CONFIG,
    check: Annotated[bool, typer.Option("--check", help="Only read the configuration, and say what is wrong.")] = False,
) -> None:
    """Run the compute API until SIGTERM.

    Exit status: 0 after a stop that was asked for, 78 when the configuration cannot be used or the database is not at
    this version's revision, 1 otherwise.
    """
    settings = read(config)
    if check:
        typer.echo(f"{config} is in order.")
        return
    with without_rich():
        from sev_agent import log  # noqa: PLC0415 - it imports structlog

    log.configure(settings.log)
    from sev_agent.api.service import run_api  # noqa: PLC0415 - help and checks need no server

    try:
        asyncio.run(run_api(settings))
    except (SevAgentError, OSError) as error:
        typer.echo(f"sev-agent: {error}", err=True)
        raise typer.Exit(CONFIG_FAULT if isinstance(error, ConfigurationError) else 1) from None


def read(config: Path) -> ApiConfig:
    """The configuration in ``config``; ends the command where it cannot be used."""
    try:
        return load_as(ApiConfig, config)
    except SevAgentError as error:
        typer.echo(f"sev-agent: {error}", err=True)
        raise typer.Exit(CONFIG_FAULT) from None
