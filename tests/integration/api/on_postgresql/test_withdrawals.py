"""Servers whose creation is answered 503 while the database goes away: nothing of them stays."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncSession

from sev_agent.api.database import Database, DatabaseUnavailable
from sev_agent.api.tables import ServerRow
from sev_agent.config import DatabaseSection
from sev_agent.errors import Unavailable
from tests.compute_api import InProcessApi, serving
from tests.postgresql import PostgresServer
from tests.unit.api.requests import make_flavor, make_image, server


class BrokerAway(Unavailable):
    code = "broker.unavailable"


@pytest.fixture
async def api(settings: DatabaseSection) -> AsyncIterator[InProcessApi]:
    """With a database that is waited for as long as a frozen one needs to be noticed."""
    async with serving(settings.model_copy(update={"timeout": 5})) as api:
        yield api


async def rows(settings: DatabaseSection) -> list[ServerRow]:
    database = Database(settings)
    async with database.reading() as session:
        found = list(await session.scalars(select(ServerRow)))
    await database.close()
    return found


async def test_the_database_goes_with_the_broker(
    api: InProcessApi, settings: DatabaseSection, postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The row that could not be put away is put away when the database is back."""
    await make_flavor(api)
    image = make_image(api)

    async def cast(*_: Any, **__: Any) -> None:
        postgres.freeze()
        raise BrokerAway("RabbitMQ is away")

    monkeypatch.setattr(api.sent, "cast", cast)
    try:
        assert (await api.ask("POST", "/servers", json=server(image)))[0] == 503
    finally:
        postgres.thaw()
    (row,) = await rows(settings)
    assert row.deleted_at is None, "it could not be written"
    await api.withdrawals.settle()
    (row,) = await rows(settings)
    assert (row.vm_state, row.deleted_at is None, row.look_at) == ("deleted", False, None)


async def test_a_commit_of_which_nobody_knows(
    api: InProcessApi, settings: DatabaseSection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was written down though the database said nothing any more is put away, also when that shows late."""
    await make_flavor(api)
    body = server(make_image(api))
    writing = Database.writing

    @asynccontextmanager
    async def unconfirmed(database: Database) -> AsyncIterator[AsyncSession]:
        async with writing(database) as session:
            yield session
        raise DatabaseUnavailable("the connection was lost")

    with monkeypatch.context() as patched:
        patched.setattr(Database, "writing", unconfirmed)
        assert (await api.ask("POST", "/servers", json=body))[0] == 503
    assert not api.sent.casts
    assert [row.deleted_at for row in await rows(settings)] == [None]
    await api.withdrawals.settle()
    (row,) = await rows(settings)
    assert row.deleted_at is not None


async def test_a_server_that_has_come_far(
    api: InProcessApi, settings: DatabaseSection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that a host has by then is deleted there: its row stays until that is done, and is looked after at once."""
    await make_flavor(api)
    image = make_image(api)

    async def cast(*_: Any, **__: Any) -> None:
        database = Database(settings)
        async with database.writing() as session:
            await session.execute(update(ServerRow).values(vm_state="active", task_state=None, host="h1", look_at=None))
        await database.close()
        raise BrokerAway("no confirmation came")

    monkeypatch.setattr(api.sent, "cast", cast)
    assert (await api.ask("POST", "/servers", json=server(image)))[0] == 503
    (row,) = await rows(settings)
    assert (row.task_state, row.deleted_at, row.host) == ("deleting", None, "h1")
    assert row.look_at is not None
    assert row.look_at <= row.updated_at
