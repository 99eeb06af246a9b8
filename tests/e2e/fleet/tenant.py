"""Somebody who speaks to the compute API: over HTTP, with a token of Keystone's."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import aiohttp

from sev_agent.openstack.identity import Identity
from tests.e2e.waiting import eventually

MICROVERSION = {"OpenStack-API-Version": "compute 2.37"}
SETTLED_SECONDS = 120.0


@dataclass(frozen=True)
class Answer:
    status: int
    body: Any


@dataclass(frozen=True)
class Tenant:
    """``urls`` are the API's processes, which are asked in turn by whoever calls."""

    session: aiohttp.ClientSession
    identity: Identity
    urls: tuple[str, ...]

    async def ask(self, method: str, path: str, body: Any = None, *, api: int = 0) -> Answer:
        """One request to the process number ``api``. Raises aiohttp's errors."""
        headers = {**MICROVERSION, "X-Auth-Token": await self.identity.token() or ""}
        url = f"{self.urls[api % len(self.urls)]}{path}"
        async with self.session.request(method, url, json=body, headers=headers) as response:
            return Answer(response.status, await response.json() if response.content_type.endswith("json") else None)

    async def create(self, name: str, *, image: UUID, flavor: str, api: int = 0, **more: Any) -> UUID:
        asked = {"name": name, "imageRef": str(image), "flavorRef": flavor, "networks": "none", **more}
        answer = await self.ask("POST", "/servers", {"server": asked}, api=api)
        assert answer.status == 202, answer.body
        return UUID(answer.body["server"]["id"])

    async def server(self, uuid: UUID) -> Mapping[str, Any]:
        answer = await self.ask("GET", f"/servers/{uuid}")
        assert answer.status == 200, answer.body
        server: Mapping[str, Any] = answer.body["server"]
        return server

    async def servers(self, **filters: str) -> list[Mapping[str, Any]]:
        """Everything that this tenant sees, in detail."""
        query = "&".join(f"{name}={value}" for name, value in {"limit": "1000", **filters}.items())
        answer = await self.ask("GET", f"/servers/detail?{query}")
        assert answer.status == 200, answer.body
        found: list[Mapping[str, Any]] = answer.body["servers"]
        return found

    async def settled(self, *uuids: UUID, within: float = SETTLED_SECONDS) -> list[Mapping[str, Any]]:
        """The servers, once none of them is on its way."""

        async def look() -> list[Mapping[str, Any]] | None:
            found = [await self.server(uuid) for uuid in uuids]
            return None if any(server["status"] == "BUILD" for server in found) else found

        found = await eventually(look, within=within, what="the servers have settled", every=0.3)
        assert found is not None
        return found
