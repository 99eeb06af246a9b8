"""The compute API in a test's own process: on a database of its own, without Keystone, beside a Glance in memory.

What it would send over RabbitMQ is kept in ``InProcessApi.sent``, and answered by nobody.
"""

import functools
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import aiohttp
from aiohttp.test_utils import TestServer
from pydantic import SecretStr

from sev_agent.api.answers import ANSWERS, statuses_with_body
from sev_agent.api.app import ComputeApi
from sev_agent.api.caller import LoopbackAuthenticator
from sev_agent.api.casts import Casts
from sev_agent.api.database import Database
from sev_agent.api.handovers import Handovers
from sev_agent.api.metrics import ApiMetrics
from sev_agent.api.migrations import upgrade
from sev_agent.api.routes import Answer, Call, Route
from sev_agent.api.service import every_route
from sev_agent.api.tenant_images import TenantImages
from sev_agent.api.told import Listener
from sev_agent.api.upkeep import Upkeep
from sev_agent.api.withdrawals import Withdrawals
from sev_agent.config import (
    ApiConfig,
    ApiSection,
    AuthSection,
    DatabaseSection,
    NetworksSection,
    PolicySection,
    QuotaSection,
    ServiceSection,
)
from sev_agent.errors import SevAgentError
from sev_agent.messaging.client import QueueUse, RpcClient
from sev_agent.openstack.identity import NoIdentity
from tests.unit.cli.cloud import ScriptedCloud

MAX_LIMIT = 50
QUOTA = QuotaSection(servers=10, vcpus=-1, ram_mb=-1)


class SentRequests:
    """In the place of ``RpcClient``: keeps the casts. ``fault`` is raised instead, where it is set.

    ``waiting`` is how many requests are told to wait in every queue.
    """

    def __init__(self) -> None:
        self.casts: list[tuple[str, Mapping[str, Any]]] = []
        self.fault: SevAgentError | None = None
        self.waiting = 0

    async def cast(self, method: str, arguments: Mapping[str, Any], **_: Any) -> None:
        if self.fault is not None:
            raise self.fault
        self.casts.append((method, arguments))

    async def call(self, method: str, arguments: Mapping[str, Any], **_: Any) -> Any:
        await self.cast(method, arguments)
        return ""

    async def queue_use(self, queue: str) -> QueueUse:
        del queue
        return QueueUse(consumers=1, waiting=self.waiting)


def held_to_its_word(route: Route) -> Route:
    """The same, failing with an answer that the document describes otherwise."""

    @functools.wraps(route.handler)
    async def handler(call: Call) -> Mapping[str, Any] | Answer | None:
        made = await route.handler(call)
        answer = made if isinstance(made, Answer) else Answer(body=made)
        with_body = (answer.status or route.status) in statuses_with_body(route)
        assert (answer.body is not None) is with_body, route.name
        if answer.body is not None:
            ANSWERS[route.name].model_validate(answer.body)
        return made

    return replace(route, handler=handler)


class InProcessApi:
    """Requests to it are those of administrator ``alice`` of project ``red`` unless headers say otherwise."""

    def __init__(
        self,
        api: ComputeApi,
        url: str,
        session: aiohttp.ClientSession,
        sent: SentRequests,
        cloud: ScriptedCloud,
        withdrawals: Withdrawals,
        handovers: Handovers,
    ) -> None:
        self.api = api
        self.url = url
        self.sent = sent
        self.withdrawals = withdrawals
        self.handovers = handovers
        self.cloud = cloud
        self._session = session

    async def ask(
        self,
        method: str,
        path: str,
        *,
        user: str = "alice",
        project: str = "red",
        roles: str = "admin",
        version: str | None = None,
        headers: Mapping[str, str] | None = None,
        **arguments: Any,
    ) -> tuple[int, Any]:
        """The status and the decoded body (``None`` where there is none) of one request below ``/v2.1``."""
        sent = {"X-User-Id": user, "X-Project-Id": project, "X-Roles": roles, **(headers or {})}
        if version is not None:
            sent["OpenStack-API-Version"] = f"compute {version}"
        async with self._session.request(method, f"{self.url}/v2.1{path}", headers=sent, **arguments) as answer:
            body = await answer.read()
            return answer.status, await answer.json() if body else None


def upkeep_of(api: InProcessApi) -> Upkeep:
    """That of its process, over what it would send; it does not run."""
    config = ApiConfig()
    return Upkeep(
        config,
        database=api.withdrawals._database,
        casts=Casts(cast("RpcClient", api.sent), call_timeout=1),
        listener=Listener(config.upkeep),
        withdrawals=api.withdrawals,
        handovers=api.handovers,
        metrics=ApiMetrics(),
        broker_is_up=lambda: True,
    )


async def file_database(directory: Path) -> DatabaseSection:
    """An SQLite database of the tests' own in ``directory``, with its tables."""
    settings = DatabaseSection(url=SecretStr(f"sqlite:///{directory}/api.sqlite"), timeout=120)
    await upgrade(settings)
    return settings


@asynccontextmanager
async def serving(
    settings: DatabaseSection, encryption: PolicySection | None = None, networks: NetworksSection | None = None
) -> AsyncIterator[InProcessApi]:
    """An API on the database of ``settings``, which has its tables.

    ``encryption`` are its bounds on policies, ``networks`` those that it offers.
    """
    async with AsyncExitStack() as closing:
        cloud, sent = ScriptedCloud(), SentRequests()
        glance = await closing.enter_async_context(TestServer(cloud.application(), host="127.0.0.1"))
        session = await closing.enter_async_context(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)))
        config = ApiConfig(
            api=ApiSection(max_limit=MAX_LIMIT),
            database=settings,
            auth=AuthSection(type="none"),
            glance=ServiceSection(endpoint=str(glance.make_url("")).rstrip("/")),
            quota=QUOTA,
            networks=networks or NetworksSection(),
            encryption=encryption or PolicySection(),
        )
        database = Database(config.database)
        closing.push_async_callback(database.close)
        withdrawals, handovers = Withdrawals(database, Listener(config.upkeep)), Handovers(database)
        routes = every_route(
            config,
            database=database,
            images=TenantImages(session, NoIdentity(), config.glance),
            casts=Casts(cast("RpcClient", sent), call_timeout=1),
            changes=Listener(config.upkeep),
            withdrawals=withdrawals,
            handovers=handovers,
        )
        api = ComputeApi(
            map(held_to_its_word, routes),
            authenticator=LoopbackAuthenticator(),
            settings=config.api,
            metrics=ApiMetrics(),
        )
        server = await closing.enter_async_context(TestServer(api.app, host="127.0.0.1"))
        yield InProcessApi(api, str(server.make_url("")).rstrip("/"), session, sent, cloud, withdrawals, handovers)
