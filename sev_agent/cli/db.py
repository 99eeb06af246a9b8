"""``sev-agent db``: the API's database."""

import sqlite3

import typer

from sev_agent.cli import daemon
from sev_agent.cli.api import DEFAULT_CONFIG, ConfigFile
from sev_agent.config import ApiConfig

app = typer.Typer(add_completion=False, no_args_is_help=True)


@app.callback()
def _db() -> None:
    """The API's database."""


@app.command()
def upgrade(config: ConfigFile = DEFAULT_CONFIG) -> None:
    """Make the tables, or bring them up to date. It may run while nothing else uses the database, and again."""
    settings = daemon.read(ApiConfig, config)
    # Imported here: Alembic is for this command alone.
    from sqlalchemy.exc import SQLAlchemyError  # noqa: PLC0415

    from sev_agent.api.migrations import newest, upgrade_now  # noqa: PLC0415

    try:
        upgrade_now(settings.database)
    except (SQLAlchemyError, sqlite3.Error, OSError) as error:
        cause = getattr(error, "orig", None) or error
        typer.echo(f"sev-agent: the database cannot be upgraded: {cause}", err=True)
        raise typer.Exit(1) from None
    typer.echo(f"The database is at revision {newest()}.")
