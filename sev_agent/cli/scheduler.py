"""``sev-agent scheduler``: the daemon that chooses a host for each server."""

from pathlib import Path
from typing import Annotated

import typer

from sev_agent.cli import daemon
from sev_agent.config import SchedulerConfig

app = typer.Typer(add_completion=False)


@app.command()
def scheduler(
    config: Annotated[
        Path, typer.Option("--config", "-c", envvar="SEV_AGENT_CONFIG", readable=False, help="The daemon's TOML file.")
    ] = Path("/etc/sev-agent/sev-agent-scheduler.toml"),
    check: daemon.Check = False,
) -> None:
    """Choose hosts for servers until SIGTERM. Any number of schedulers may run side by side.

    Exit status: 0 after a stop that was asked for, 78 when the configuration cannot be used, 1 otherwise.
    """
    settings = daemon.prepare(SchedulerConfig, config, check=check)
    # Imported here: asking for help or checking a file needs no broker.
    from sev_agent.scheduler.daemon import run_scheduler  # noqa: PLC0415

    daemon.serve(run_scheduler(settings))
