"""Where the API listens."""

import asyncio
from urllib.parse import quote

import aiohttp
from aiohttp import web

from sev_agent.api.listening_socket import ListeningSocket
from sev_agent.api.server_filters import ServerQuery
from sev_agent.config import ApiSection
from tests.rabbitmq import free_port

_KEYS = 8 * 64
"""Characters of a query's sort keys, and as many of directions."""


async def test_the_longest_query() -> None:
    """Every filter at its full length, in characters that take the most, arrives."""
    listens = asyncio.Event()

    async def answer(request: web.Request) -> web.Response:
        return web.json_response(dict(request.query))

    app = web.Application()
    app.router.add_get("/", answer)
    settings = ApiSection(port=free_port())
    socket = asyncio.create_task(ListeningSocket(app, settings, on_listening=listens.set).run())
    async with asyncio.timeout(60):
        await listens.wait()
    names = [field.alias or name for name, field in ServerQuery.model_fields.items() if not name.startswith("sort_")]
    sent = dict.fromkeys(names, "😀" * 255) | {"sort_key": "k" * _KEYS, "sort_dir": "d" * _KEYS}
    query = "&".join(f"{name}={quote(value)}" for name, value in sent.items())
    url = f"http://127.0.0.1:{settings.port}/?{query}"
    async with aiohttp.ClientSession() as session, session.get(url) as answered:
        assert answered.status == 200
        assert await answered.json() == sent
    socket.cancel()
    await asyncio.wait({socket})
