import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from pydantic import SecretStr
from sqlalchemy import make_url, text
from sqlalchemy.engine import Connection

from sev_agent.api.database import Database, WrongRevision
from sev_agent.api.migrations import newest, upgrade
from sev_agent.api.tables import REVISION, Table
from sev_agent.config import DatabaseSection


@pytest.fixture
def settings(tmp_path: Path) -> DatabaseSection:
    return DatabaseSection(url=SecretStr(f"sqlite:///{tmp_path}/api.sqlite"))


def test_the_program_knows_the_newest_revision() -> None:
    """What the API demands is what an upgrade leads to."""
    assert newest() == REVISION


async def test_an_upgrade_makes_what_the_program_maps(settings: DatabaseSection) -> None:
    """The migrations lead to exactly the mapped tables; a second upgrade changes nothing."""
    await upgrade(settings)
    await upgrade(settings)
    database = Database(settings)
    async with database.engine.connect() as connection:
        assert await connection.run_sync(differences) == []
    await database.close()


async def test_upgrades_at_once(settings: DatabaseSection) -> None:
    """Services that start together may all upgrade."""
    await asyncio.gather(*(upgrade(settings) for _ in range(4)))


async def test_the_upgrade_of_a_database_that_is_read(settings: DatabaseSection) -> None:
    """Readers never wait for a writer afterwards; the upgrade waits for the reader that was there before."""
    path = make_url(settings.url.get_secret_value()).database
    assert path is not None
    with closing(sqlite3.connect(path, isolation_level=None)) as reader:
        reader.execute("CREATE TABLE other (id INTEGER)")
        reader.execute("BEGIN")
        assert reader.execute("SELECT * FROM other").fetchall() == []
        upgrading = asyncio.create_task(upgrade(settings))
        done, _ = await asyncio.wait({upgrading}, timeout=0.2)
        assert not done
        reader.execute("COMMIT")
        await upgrading
    with closing(sqlite3.connect(path)) as later:
        assert later.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def differences(connection: Connection) -> list[object]:
    return list(compare_metadata(MigrationContext.configure(connection), Table.metadata))


async def test_a_database_without_tables_is_refused(settings: DatabaseSection) -> None:
    """With the command that makes them."""
    database = Database(settings)
    with pytest.raises(WrongRevision, match="no tables yet") as caught:
        await database.check_revision()
    assert "sev-agent db upgrade" in str(caught.value)
    await database.close()


async def test_a_database_of_another_version_is_refused(settings: DatabaseSection) -> None:
    """Its revision is named."""
    await upgrade(settings)
    database = Database(settings)
    async with database.writing() as session:
        await session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(WrongRevision, match="is at revision 9999, but revision"):
        await database.check_revision()
    await database.close()
