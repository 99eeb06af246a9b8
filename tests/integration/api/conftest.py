"""The compute API, whole, on each of its databases, with a real RabbitMQ, Keystone and Glance.

Schedulers and hosts are played by ``Fleet``.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias
from uuid import uuid4

import aiohttp
import pytest
from pydantic import SecretStr

from sev_agent.api.migrations import upgrade
from sev_agent.api.service import ApiService
from sev_agent.config import (
    ApiConfig,
    ApiHttpSection,
    ApiSection,
    DatabaseSection,
    MessagingSection,
    QuotaSection,
    UpkeepSection,
)
from sev_agent.lab.accounts import service_user
from sev_agent.lab.openstack import OpenStack
from sev_agent.messaging import topology
from sev_agent.messaging.broker import Broker
from sev_agent.service import ServiceManager, Supervisor
from tests.e2e.waiting import eventually
from tests.integration.api.fleet import PATIENCE, Fleet
from tests.integration.api.tenants import Tenants
from tests.postgresql import PostgresServer, postgresql
from tests.rabbitmq import RabbitNode, free_port
from tests.running import connected, running


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    with postgresql() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"], scope="module")
def database(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> DatabaseSection:
    """A database of each kind, with its tables."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path_factory.mktemp('api')}/api.sqlite"
    else:
        server: PostgresServer = request.getfixturevalue("postgres")
        url = server.new_database()
    settings = DatabaseSection(url=SecretStr(url), timeout=20)
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        runner.run(upgrade(settings))
    return settings


@pytest.fixture(scope="session")
def tenants(cloud: OpenStack, tmp_path_factory: pytest.TempPathFactory) -> Tenants:
    directory = tmp_path_factory.mktemp("images")
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        return runner.run(Tenants.make(cloud, directory))


@pytest.fixture
async def broker(node: RabbitNode) -> AsyncIterator[Broker]:
    async with connected(node.url) as broker:
        yield broker


@pytest.fixture
async def fleet(broker: Broker) -> AsyncIterator[Fleet]:
    fleet = Fleet(broker, f"host-{uuid4().hex[:8]}")

    async def takes_requests() -> bool:
        return fleet.takes_requests

    async with running(*fleet.servers):
        await eventually(takes_requests, within=PATIENCE, what="schedulers and host take requests")
        yield fleet
    # What an API asked for last is nobody else's.
    channel = await (await broker.link()).channel()
    await (await topology.scheduler_queue(delivery_limit=5).declare(channel, timeout=10)).purge()
    await channel.close()


@dataclass
class Api:
    """A running API. Requests are made with the token of one of the tenants' users, or of ``admin``."""

    url: str
    health_url: str
    tenants: Tenants
    session: aiohttp.ClientSession
    fleet: Fleet
    flavor: str = ""
    tokens: dict[str, str] = field(default_factory=dict)

    async def ask(
        self,
        method: str,
        path: str,
        *,
        user: str = "alice",
        version: str = "2.61",
        headers: dict[str, str] | None = None,
        **arguments: Any,
    ) -> tuple[int, Any]:
        """The status and the decoded body (``None`` where there is none) of one request below ``/v2.1``."""
        if user not in self.tokens:
            self.tokens[user] = await self.tenants.token(self.session, user)
        sent = {"X-Auth-Token": self.tokens[user], "OpenStack-API-Version": f"compute {version}", **(headers or {})}
        async with self.session.request(method, f"{self.url}{path}", headers=sent, **arguments) as answer:
            body = await answer.read()
            return answer.status, await answer.json() if body else None

    def wanted(self, **changes: Any) -> dict[str, Any]:
        """The body of a request for a server that can be had."""
        server = {
            "name": "guest",
            "flavorRef": self.flavor,
            "imageRef": str(self.tenants.image),
            "networks": "none",
            **changes,
        }
        return {"server": {name: value for name, value in server.items() if value is not None}}

    async def create(self, *, user: str = "alice", **changes: Any) -> str:
        """A new server's identifier; its request has reached the scheduler."""
        status, body = await self.ask("POST", "/servers", user=user, json=self.wanted(**changes))
        assert status == 202, body
        scheduled = await self.fleet.next_scheduled()
        assert str(scheduled.instance.uuid) == body["server"]["id"]
        return str(body["server"]["id"])

    async def created(self, **changes: Any) -> str:
        """A new server that is active on the fleet's host."""
        server = await self.create(**changes)
        await self.fleet.builds(server)
        await self.wait(server, lambda shown: shown["status"] == "ACTIVE")
        return server

    async def show(self, server: str, *, user: str = "admin") -> dict[str, Any]:
        status, body = await self.ask("GET", f"/servers/{server}", user=user)
        assert status == 200, body
        shown: dict[str, Any] = body["server"]
        return shown

    async def wait(self, server: str, reached: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
        """Until ``reached`` says yes of the server."""
        shown: dict[str, Any] = {}

        async def is_reached() -> bool:
            shown.clear()
            shown.update(await self.show(server))
            return bool(reached(shown))

        await eventually(is_reached, within=PATIENCE, what=f"server {server} is as expected")
        return shown

    async def wait_gone(self, server: str) -> None:
        async def is_gone() -> bool:
            return (await self.ask("GET", f"/servers/{server}", user="admin"))[0] == 404

        await eventually(is_gone, within=PATIENCE, what=f"server {server} is gone")


StartApi: TypeAlias = Callable[..., Awaitable[Api]]


@pytest.fixture
async def start_api(
    database: DatabaseSection, node: RabbitNode, tenants: Tenants, fleet: Fleet
) -> AsyncIterator[StartApi]:
    """Starts APIs on the test's database; ``changes`` replace sections of their configuration."""
    async with contextlib.AsyncExitStack() as closing:

        async def start(*, needs: tuple[str, ...] = ("database", "broker"), **changes: Any) -> Api:
            sections = {
                "api": ApiSection(port=free_port()),
                "http": ApiHttpSection(port=free_port()),
                "database": database,
                "messaging": MessagingSection(url=SecretStr(node.url), publish_timeout=5, reconnect_max=0.5),
                "auth": service_user(tenants.cloud),
                "quota": QuotaSection(servers=-1, vcpus=-1, ram_mb=-1),
                "upkeep": UpkeepSection(interval=0.2),
            }
            config = ApiConfig(**(sections | changes))
            session = await closing.enter_async_context(aiohttp.ClientSession())
            await closing.enter_async_context(_running(config, session))
            url, health = (f"http://127.0.0.1:{port}" for port in (config.api.port, config.http.port))
            api = Api(f"{url}/v2.1", health, tenants, session, fleet)
            await _wait_ready(api, needs)
            return api

        yield start


@contextlib.asynccontextmanager
async def _running(config: ApiConfig, session: aiohttp.ClientSession) -> AsyncIterator[None]:
    supervisor = Supervisor(stop_timeout=15)
    service = ApiService(config, session, ServiceManager({}), supervisor)
    await service.prepare()
    service.start()
    try:
        yield
    finally:
        supervisor.stop()
        await supervisor.wait()
        await service.close()


async def _wait_ready(api: Api, needs: tuple[str, ...]) -> None:
    async def is_ready() -> bool:
        try:
            async with api.session.get(f"{api.health_url}/readyz") as answer:
                conditions = (await answer.json())["dependencies"]
        except aiohttp.ClientError:
            return False
        return all(conditions[name]["up"] for name in needs)

    await eventually(is_ready, within=PATIENCE, what="the API is ready")


@pytest.fixture
async def api(start_api: StartApi) -> Api:
    """One API, with a flavor that asks for encryption."""
    api = await start_api()
    api.flavor = await new_flavor(api)
    return api


async def new_flavor(
    api: Api, extra_specs: dict[str, str] | None = None, *, ram: int = 512, vcpus: int = 1, public: bool = True
) -> str:
    """A flavor of 512 MiB and 1 GiB, encrypted unless ``extra_specs`` say otherwise."""
    name = f"f-{uuid4().hex[:8]}"
    flavor = {"name": name, "ram": ram, "vcpus": vcpus, "disk": 1, "os-flavor-access:is_public": public}
    status, body = await api.ask("POST", "/flavors", user="admin", json={"flavor": flavor})
    assert status == 200, body
    made = str(body["flavor"]["id"])
    specs = {"hw:mem_encryption": "true"} if extra_specs is None else extra_specs
    if specs:
        await api.ask("POST", f"/flavors/{made}/os-extra_specs", user="admin", json={"extra_specs": specs})
    return made
