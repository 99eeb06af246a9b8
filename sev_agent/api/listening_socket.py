"""The listening socket of the API."""

import asyncio
from collections.abc import Callable
from typing import Final

import structlog
from aiohttp import web

from sev_agent.config import ApiSection

log = structlog.stdlib.get_logger(__name__)

_BACKLOG = 1024

MAX_LINE: Final = 128 * 1024
"""Bytes of a request's first line: room for the longest query, whose characters may take twelve each (%F0%9F%98%80).

aiohttp's own limit is 8,190.
"""


class ListeningSocket:
    """Serves ``app`` until cancelled; then lets the requests in hand end, within ``settings.stop_timeout``."""

    def __init__(
        self, app: web.Application, settings: ApiSection, *, on_listening: Callable[[], None] | None = None
    ) -> None:
        self._app = app
        self._settings = settings
        self._on_listening = on_listening

    async def run(self) -> None:
        """Raises ``OSError`` when the address cannot be bound."""
        runner = web.AppRunner(
            self._app, access_log=None, shutdown_timeout=self._settings.stop_timeout, max_line_size=MAX_LINE
        )
        await runner.setup()
        try:
            await web.TCPSite(runner, self._settings.host, self._settings.port, backlog=_BACKLOG).start()
            log.info("api.listening", addresses=[f"{host}:{port}" for host, port, *_ in runner.addresses])
            if self._on_listening is not None:
                self._on_listening()
            await asyncio.Event().wait()
        finally:
            await runner.cleanup()
