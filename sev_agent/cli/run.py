"""``sev-agent run``: the host daemon."""

from pathlib import Path
from typing import Annotated

import typer

from sev_agent.cli import daemon
from sev_agent.config import AgentConfig

app = typer.Typer(add_completion=False)


@app.command()
def run(
    config: Annotated[
        Path, typer.Option("--config", "-c", envvar="SEV_AGENT_CONFIG", readable=False, help="The daemon's TOML file.")
    ] = Path("/etc/sev-agent/sev-agent.toml"),
    check: daemon.Check = False,
) -> None:
    """Run the daemon of this compute host until SIGTERM.

    Exit status: 0 after a stop that was asked for, 75 when another daemon serves this host, 78 when the
    configuration cannot be used, 1 otherwise.
    """
    settings = daemon.prepare(AgentConfig, config, check=check)
    # Imported here: asking for help or checking a file needs neither libvirt nor a broker.
    from sev_agent.compute.agent import run_agent  # noqa: PLC0415

    daemon.serve(run_agent(settings))
