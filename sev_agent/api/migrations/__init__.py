"""Alembic's migrations of the API's database; ``upgrade`` brings one up to date."""

import asyncio
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import text
from sqlalchemy.engine import Connection

from sev_agent.api.database import WRITES, Database
from sev_agent.config import DatabaseSection

_LOCK = 0x5EF_A9E47
"""Any number that nobody else locks in this database."""


def configuration() -> Config:
    """Alembic's, of the migrations in this package."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    return config


def newest() -> str:
    """The revision that an upgrade leads to."""
    return ScriptDirectory.from_config(configuration()).get_current_head() or ""


async def upgrade(settings: DatabaseSection) -> None:
    """Make the tables, or bring them to the newest revision; nothing where they are. Raises SQLAlchemy's errors."""
    database = Database(settings)
    try:
        async with database.engine.connect() as connection:
            await connection.execution_options(**{WRITES: True})
            async with connection.begin():
                if connection.dialect.name == "postgresql":
                    # Several services may start at once, each with its upgrade.
                    await connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
                await connection.run_sync(_upgrade)
    finally:
        await database.close()


def upgrade_now(settings: DatabaseSection) -> None:
    """As ``upgrade``, where no loop runs."""
    asyncio.run(upgrade(settings))


def _upgrade(connection: Connection) -> None:
    config = configuration()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
