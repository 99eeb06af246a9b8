"""The compute API in a test's own process, on a database of its own, without Keystone."""

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import aiohttp
from aiohttp.test_utils import TestServer
from pydantic import SecretStr

from sev_agent.api.app import ComputeApi
from sev_agent.api.caller import LoopbackAuthenticator
from sev_agent.api.database import Database
from sev_agent.api.flavor_routes import FlavorRoutes
from sev_agent.api.flavors import Flavors
from sev_agent.api.keypair_routes import KeypairRoutes
from sev_agent.api.keypairs import Keypairs
from sev_agent.api.metrics import ApiMetrics
from sev_agent.api.migrations import upgrade
from sev_agent.api.routes import Route
from sev_agent.config import ApiSection, DatabaseSection

MAX_LIMIT: Final = 50


def routes(database: Database) -> Iterable[Route]:
    """The groups that need nothing but the database."""
    return (
        *FlavorRoutes(Flavors(database), max_limit=MAX_LIMIT).routes(),
        *KeypairRoutes(Keypairs(database), max_limit=MAX_LIMIT).routes(),
    )


@asynccontextmanager
async def serving(
    directory: Path, routes: Callable[[Database], Iterable[Route]] = routes
) -> AsyncIterator["InProcessApi"]:
    """An API whose database is a file in ``directory``."""
    settings = DatabaseSection(url=SecretStr(f"sqlite:///{directory}/api.sqlite"))
    await upgrade(settings)
    database = Database(settings)
    api = ComputeApi(
        routes(database), authenticator=LoopbackAuthenticator(), settings=ApiSection(), metrics=ApiMetrics()
    )
    async with TestServer(api.app, host="127.0.0.1") as server, aiohttp.ClientSession() as session:
        yield InProcessApi(api, str(server.make_url("")).rstrip("/"), session)
    await database.close()


class InProcessApi:
    """Requests to it are those of administrator ``alice`` of project ``red`` unless headers say otherwise."""

    def __init__(self, api: ComputeApi, url: str, session: aiohttp.ClientSession) -> None:
        self.api = api
        self.url = url
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
        headers: dict[str, str] | None = None,
        **arguments: Any,
    ) -> tuple[int, Any]:
        """The status and the decoded body (``None`` where there is none) of one request below ``/v2.1``."""
        sent = {"X-User-Id": user, "X-Project-Id": project, "X-Roles": roles, **(headers or {})}
        if version is not None:
            sent["OpenStack-API-Version"] = f"compute {version}"
        async with self._session.request(method, f"{self.url}/v2.1{path}", headers=sent, **arguments) as answer:
            body = await answer.read()
            return answer.status, await answer.json() if body else None
