"""Addresses are given on PostgreSQL as on SQLite, to many at once, too."""

# ruff: noqa: F403 - the very same tests, found by their names
import asyncio

from sqlalchemy import text

from sev_agent.api.upkeep import Upkeep
from tests.compute_api import InProcessApi
from tests.unit.api.requests import make_flavor
from tests.unit.api.test_addresses import *
from tests.unit.api.test_addresses import POOLED, create


async def test_a_purge_waits_for_who_gives_addresses(api: InProcessApi, upkeep: Upkeep) -> None:
    """Both delete addresses of deleted servers: they take turns, so that neither waits for the other for ever."""
    await make_flavor(api)
    assert (await create(api, {"uuid": POOLED}))[0] == 202
    database = api.withdrawals._database
    waiting = text(
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    )
    async with database.writing() as giving:
        await giving.execute(text("SELECT * FROM address_pools FOR UPDATE"))
        purge = asyncio.create_task(upkeep._purge())
        async with asyncio.timeout(60):
            while not purge.done():
                async with database.reading() as session:
                    if await session.scalar(waiting):
                        break
        assert not purge.done()
    await purge
