"""The API while its database hangs, and afterwards."""

import asyncio

import pytest
from pydantic import SecretStr

from sev_agent.api.migrations import upgrade
from sev_agent.config import DatabaseSection
from tests.e2e.waiting import eventually
from tests.integration.api.conftest import Api, StartApi, new_flavor
from tests.integration.api.fleet import PATIENCE
from tests.postgresql import PostgresServer
from tests.status_page import read, rows


@pytest.fixture
def database(request: pytest.FixtureRequest) -> DatabaseSection:
    """On PostgreSQL, with little patience."""
    server: PostgresServer = request.getfixturevalue("postgres")
    settings = DatabaseSection(url=SecretStr(server.new_database()), timeout=2)
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        runner.run(upgrade(settings))
    return settings


async def test_a_database_that_hangs(start_api: StartApi, postgres: PostgresServer) -> None:
    """503 while it does, and a page that says why; what happens meanwhile is known when it is back."""
    api = await start_api()
    api.flavor = await new_flavor(api)
    server = await api.create()
    postgres.freeze()
    try:
        status, body = await api.ask("GET", f"/servers/{server}")
        assert (status, list(body)) == (503, ["serviceUnavailable"])
        assert "database" in body["serviceUnavailable"]["message"]
        assert (await api.ask("POST", "/servers", json=api.wanted()))[0] == 503
        await api.fleet.builds(server)
        await eventually(lambda: ready(api, expected=False), within=PATIENCE, what="/readyz says no")
        async with api.session.get(f"{api.health_url}/") as answer:
            page = {row[0]: row[1] for row in rows(read(await answer.text()), "What it leans on")}
        assert page["database"] == "down"
    finally:
        postgres.thaw()
    await eventually(lambda: ready(api, expected=True), within=PATIENCE, what="/readyz says yes")
    await api.wait(server, lambda shown: shown["status"] == "ACTIVE")
    assert len((await api.ask("GET", "/servers"))[1]["servers"]) == 1
    assert api.fleet.scheduled.empty()


async def ready(api: Api, *, expected: bool) -> bool:
    async with api.session.get(f"{api.health_url}/readyz") as answer:
        return (answer.status == 200) is expected
