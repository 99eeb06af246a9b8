"""The compute API in the tests' own process, on PostgreSQL: for tests that run on SQLite without any service."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from pydantic import SecretStr

from sev_agent.api.database import Database
from sev_agent.api.migrations import upgrade
from sev_agent.api.tables import Table
from sev_agent.config import DatabaseSection
from tests.compute_api import InProcessApi, serving
from tests.postgresql import PostgresServer


@pytest.fixture(scope="module")
def shared(postgres: PostgresServer) -> DatabaseSection:
    """One database for a module's tests: to make one takes longer than most of them."""
    settings = DatabaseSection(url=SecretStr(postgres.new_database()), timeout=120)
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        runner.run(upgrade(settings))
    return settings


@pytest.fixture
async def settings(shared: DatabaseSection) -> AsyncIterator[DatabaseSection]:
    """A database with tables, which are empty."""
    yield shared
    database = Database(shared)
    async with database.writing() as session:
        for table in reversed(Table.metadata.sorted_tables):
            await session.execute(table.delete())
    await database.close()


@pytest.fixture
async def api(settings: DatabaseSection) -> AsyncIterator[InProcessApi]:
    async with serving(settings) as api:
        yield api
