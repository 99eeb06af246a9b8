"""Alembic's migrations of the API's database; ``upgrade`` brings one up to date."""

import asyncio
import sqlite3
from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import text
from sqlalchemy.engine import Connection
from sqlalchemy.ext.asyncio import AsyncConnection

from sev_agent.api.database import WRITES, Database
from sev_agent.config import DatabaseSection

_LOCK: Final = 0x5EF_A9E47
"""Any number that nobody else locks in this database."""
_AGAIN_SECONDS: Final = 0.05
_PRIMARY_CODE: Final = 0xFF
"""SQLite tells kinds of one error apart in the higher bits."""


def configuration() -> Config:
    """Alembic's, of the migrations in this package."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    return config


def newest() -> str:
    """The revision that an upgrade leads to."""
    return ScriptDirectory.from_config(configuration()).get_current_head() or ""


async def upgrade(settings: DatabaseSection) -> None:
    """Make the tables, or bring them to the newest revision; nothing where they are.

    Raises SQLAlchemy's errors, and sqlite3's where other users leave an SQLite file no moment alone.
    """
    database = Database(settings)
    try:
        async with database.engine.connect() as connection:
            if connection.dialect.name == "sqlite":
                await _write_ahead(connection, settings.timeout)
            await connection.execution_options(**{WRITES: True})
            async with connection.begin():
                if connection.dialect.name == "postgresql":
                    # Several services may start at once, each with its upgrade.
                    await connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
                await connection.run_sync(_upgrade)
    finally:
        await database.close()


async def _write_ahead(connection: AsyncConnection, limit: float) -> None:
    """Have SQLite write ahead, so that readers never wait; the file keeps it. Raises ``sqlite3.OperationalError``.

    While others use the file SQLite refuses at once, or answers with the mode of before, instead of waiting for them.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + limit
    driver = (await connection.get_raw_connection()).driver_connection
    assert driver is not None
    while True:
        try:
            if list(await driver.execute_fetchall("PRAGMA journal_mode=WAL")) == [("wal",)]:
                return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & _PRIMARY_CODE != sqlite3.SQLITE_BUSY:
                raise
        if loop.time() > deadline:
            raise sqlite3.OperationalError(f"other users of the database left it no moment alone in {limit:g} s")
        await asyncio.sleep(_AGAIN_SECONDS)


def upgrade_now(settings: DatabaseSection) -> None:
    """As ``upgrade``, where no loop runs."""
    asyncio.run(upgrade(settings))


def _upgrade(connection: Connection) -> None:
    config = configuration()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
