"""The migrations on PostgreSQL."""

import asyncio

from pydantic import SecretStr

from sev_agent.api.database import Database
from sev_agent.api.migrations import upgrade
from sev_agent.config import DatabaseSection
from tests.postgresql import PostgresServer
from tests.unit.api.test_migrations import differences


async def test_upgrades_at_once(postgres: PostgresServer) -> None:
    """Services that start together may all upgrade; that leads to exactly the mapped tables."""
    settings = DatabaseSection(url=SecretStr(postgres.new_database()))
    await asyncio.gather(*(upgrade(settings) for _ in range(4)))
    database = Database(settings)
    async with database.engine.connect() as connection:
        assert await connection.run_sync(differences) == []
    await database.close()
