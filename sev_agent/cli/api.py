"""``sev-agent api``: the compute API."""

from pathlib import Path
from typing import Annotated

import typer

from sev_agent.cli import daemon
from sev_agent.config import ApiConfig

ConfigFile = Annotated[
    Path, typer.Option("--config", "-c", envvar="SEV_AGENT_CONFIG", readable=False, help="The API's TOML file.")
]
DEFAULT_CONFIG = Path("/etc/sev-agent/sev-agent-api.toml")

app = typer.Typer(add_completion=False)


@app.command()
def api(config: ConfigFile = DEFAULT_CONFIG, check: daemon.Check = False) -> None:
    """Run the compute API until SIGTERM.

    Exit status: 0 after a stop that was asked for, 78 when the configuration cannot be used or the database is not at
    this version's revision, 1 otherwise.
    """
    settings = daemon.prepare(ApiConfig, config, check=check)
    from sev_agent.api.service import run_api  # noqa: PLC0415 - help and checks need no server

    daemon.serve(run_api(settings))
