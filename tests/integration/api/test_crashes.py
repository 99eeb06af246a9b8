"""SIGKILL of an API process between two steps of its own: what it began is ended by its next life, and once."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp.test_utils import TestServer
from pydantic import SecretStr

from sev_agent.api.migrations import upgrade
from sev_agent.config import DatabaseSection
from sev_agent.crash_points import VARIABLE, CrashPoint
from sev_agent.sev import tags
from tests.e2e.waiting import eventually
from tests.integration.api.fleet import Fleet
from tests.postgresql import PostgresServer
from tests.proxy import Proxy
from tests.rabbitmq import RabbitNode, free_port
from tests.unit.cli.cloud import ScriptedCloud

SECONDS = 60.0
_COMMAND = (sys.executable, "-m", "sev_agent", "api", "--config")


class Life:
    """One process of the API, without Keystone."""

    def __init__(self, process: asyncio.subprocess.Process, port: int, session: aiohttp.ClientSession) -> None:
        self.process = process
        self._url = f"http://127.0.0.1:{port}/v2.1"
        self._session = session

    async def ask(self, method: str, path: str, **arguments: Any) -> tuple[int, Any]:
        async with self._session.request(method, f"{self._url}{path}", **arguments) as answer:
            body = await answer.read()
            return answer.status, await answer.json() if body else None

    async def answers(self) -> bool:
        assert self.process.returncode is None
        with contextlib.suppress(aiohttp.ClientError):
            return (await self.ask("GET", "/flavors"))[0] == 200
        return False

    async def servers(self) -> list[tuple[str, str]]:
        """The identifier and the status of each."""
        _, body = await self.ask("GET", "/servers/detail")
        return [(server["id"], server["status"]) for server in body["servers"]]

    async def used(self) -> int:
        _, body = await self.ask("GET", "/limits")
        return int(body["limits"]["absolute"]["totalInstancesUsed"])


class Lives:
    """Starts one process after the other on the same database."""

    def __init__(self, config: Path, text: str, port: int) -> None:
        self._config = config
        self._text = text
        self._port = port

    @contextlib.asynccontextmanager
    async def live(self, *, dies_at: CrashPoint | None = None, changes: Mapping[str, str] = {}) -> AsyncIterator[Life]:
        """One whose configuration has the values of ``changes`` in the place of the keys."""
        text = self._text
        for old, new in changes.items():
            assert old in text
            text = text.replace(old, new)
        self._config.write_text(text)
        environment = os.environ | ({VARIABLE: dies_at} if dies_at else {})
        process = await asyncio.create_subprocess_exec(*_COMMAND, str(self._config), env=environment)
        async with aiohttp.ClientSession() as session:
            life = Life(process, self._port, session)
            try:
                await eventually(life.answers, within=SECONDS, what="the API answers")
                yield life
            finally:
                with contextlib.suppress(ProcessLookupError):
                    process.terminate()
                await asyncio.wait_for(process.wait(), SECONDS)


@pytest.fixture
async def cloud() -> AsyncIterator[ScriptedCloud]:
    cloud = ScriptedCloud()
    async with TestServer(cloud.application(), host="127.0.0.1") as server:
        cloud.url = str(server.make_url("")).rstrip("/")
        yield cloud


@pytest.fixture
def lives(node: RabbitNode, kind: str, cloud: ScriptedCloud, request: pytest.FixtureRequest, tmp_path: Path) -> Lives:
    """On a database of the ``kind``, which has its tables."""
    server: PostgresServer | None = request.getfixturevalue("postgres") if kind == "postgresql" else None
    url = server.new_database() if server else f"sqlite:///{tmp_path}/api.sqlite"
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        runner.run(upgrade(DatabaseSection(url=SecretStr(url))))
    port = free_port()
    text = (
        f'[api]\nport = {port}\nstop_timeout = 5\n[http]\nport = {free_port()}\n[auth]\ntype = "none"\n'
        f'[database]\nurl = "{url}"\n[messaging]\nurl = "{node.url}"\n'
        f'[glance]\nendpoint = "{cloud.url}"\n'
        "[upkeep]\ninterval = 0.2\nschedule_deadline = 1\nschedule_attempts = 50\ntransition_deadline = 1\n"
    )
    return Lives(tmp_path / "api.toml", text, port)


async def what_can_be_had(life: Life, cloud: ScriptedCloud) -> dict[str, str]:
    """A request for a server, with a flavor and an image of its own."""
    image = cloud.add_image("debian", **tags.IMAGE)
    flavor = {"name": "small", "id": "small", "ram": 512, "vcpus": 1, "disk": 1}
    assert (await life.ask("POST", "/flavors", json={"flavor": flavor}))[0] == 200
    specs = {"extra_specs": {"hw:mem_encryption": "true"}}
    assert (await life.ask("POST", "/flavors/small/os-extra_specs", json=specs))[0] == 200
    return {"name": "guest", "flavorRef": "small", "imageRef": image}


@pytest.mark.parametrize(
    ("point", "kind"),
    [
        (CrashPoint.CREATE_AFTER_CAST, "postgresql"),
        (CrashPoint.NEWS_BEFORE_COMMIT, "postgresql"),
        (CrashPoint.NEWS_AFTER_COMMIT, "sqlite"),
    ],
)
async def test_death_between_two_steps(
    lives: Lives, cloud: ScriptedCloud, fleet: Fleet, point: CrashPoint, kind: str
) -> None:
    """Between cast and answer, news and commit, commit and acknowledgement: one server, and then none."""
    playing = asyncio.create_task(fleet.play())
    async with lives.live(dies_at=point) as life:
        wanted = await what_can_be_had(life, cloud)
        with contextlib.suppress(aiohttp.ClientError):
            assert (await life.ask("POST", "/servers", json={"server": wanted}))[0] == 202
        assert await asyncio.wait_for(life.process.wait(), SECONDS) == -signal.SIGKILL
    async with lives.live() as life:

        async def is_active() -> bool:
            return [status for _, status in await life.servers()] == ["ACTIVE"]

        await eventually(is_active, within=SECONDS, what="there is one server, and it is active")
        assert await life.used() == 1
        ((server, _),) = await life.servers()
        assert (await life.ask("DELETE", f"/servers/{server}"))[0] == 204

        async def is_gone() -> bool:
            return not await life.servers()

        await eventually(is_gone, within=SECONDS, what="the server is gone")
        assert await life.used() == 0
    playing.cancel()
    await asyncio.wait({playing})


async def only_in_error(life: Life, fleet: Fleet) -> None:
    """There is one server, of which no scheduler ever heard; it says so, and can be deleted."""

    async def is_over() -> bool:
        return [status for _, status in await life.servers()] == ["ERROR"]

    await eventually(is_over, within=SECONDS, what="the server is in ERROR")
    assert fleet.scheduled.empty()
    ((server, _),) = await life.servers()
    _, shown = await life.ask("GET", f"/servers/{server}")
    assert "ended before it had handed it to the schedulers" in shown["server"]["fault"]["message"]
    assert (await life.ask("DELETE", f"/servers/{server}"))[0] == 204
    assert await life.used() == 0


@pytest.mark.parametrize("kind", ["sqlite"])
async def test_death_between_row_and_cast(lives: Lives, cloud: ScriptedCloud, fleet: Fleet) -> None:
    """Whoever got no answer asks again: nobody else makes the first one, too."""
    async with lives.live(dies_at=CrashPoint.CREATE_AFTER_ROW) as life:
        wanted = await what_can_be_had(life, cloud)
        with pytest.raises(aiohttp.ClientError):
            await life.ask("POST", "/servers", json={"server": wanted})
        assert await asyncio.wait_for(life.process.wait(), SECONDS) == -signal.SIGKILL
    async with lives.live() as life:
        await only_in_error(life, fleet)


@pytest.mark.parametrize("kind", ["postgresql"])
async def test_death_after_a_commit_that_nobody_confirmed(
    lives: Lives, cloud: ScriptedCloud, fleet: Fleet, postgres: PostgresServer
) -> None:
    """Answered 503, since the database hung before it said that the row is there, and killed: no second guest."""
    async with Proxy(postgres.port) as proxy:
        # No upkeep, which would put it away, and whose commits are not those that are waited for.
        changes = {f":{postgres.port}/": f":{proxy.port}/", "interval = 0.2": "interval = 600"}
        async with lives.live(changes=changes | {"[database]": "[database]\ntimeout = 5"}) as life:
            wanted = await what_can_be_had(life, cloud)
            # PostgreSQL's own word of a commit that is done.
            proxy.freeze_at(b"COMMIT\0")
            assert (await life.ask("POST", "/servers", json={"server": wanted}))[0] == 503
            assert proxy.sprung.is_set()
            life.process.kill()
            await asyncio.wait_for(life.process.wait(), SECONDS)
    async with lives.live() as life:
        await only_in_error(life, fleet)
