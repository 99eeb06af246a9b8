import asyncio
import contextlib

import aiohttp
import pytest
from aiohttp import web

from sev_agent.config import AuthSection, TokensSection
from sev_agent.openstack import tokens as module
from sev_agent.openstack.identity import NoIdentity
from sev_agent.openstack.tokens import KeystoneTokens
from tests.unit.openstack.conftest import Serve

PATIENCE = 60.0
OWN = {"token": {"expires_at": "2999-01-01T00:00:00Z", "user": {"id": "own"}}}


async def test_keystone_is_reached_before_anyone_brings_a_token(
    session: aiohttp.ClientSession, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The watch hears that Keystone is away, why, and soon that it is back."""
    monkeypatch.setattr(module, "_AWAY_SECONDS", 0.01)
    answers = iter([web.Response(status=503), web.json_response(OWN)])

    async def keystone(_request: web.Request) -> web.Response:
        return next(answers)

    heard: asyncio.Queue[str | None] = asyncio.Queue()
    auth = AuthSection(auth_url=f"{await serve(keystone)}/v3")
    tokens = KeystoneTokens(session, NoIdentity(), auth, TokensSection(), on_reached=heard.put_nowait)
    watching = asyncio.create_task(tokens.watch())
    async with asyncio.timeout(PATIENCE):
        while (reason := await heard.get()) is not None:
            assert "503" in reason
    watching.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await watching
