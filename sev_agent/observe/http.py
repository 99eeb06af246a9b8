"""The daemon's HTTP endpoints: ``/healthz``, ``/readyz`` and ``/metrics`` for programs, ``/`` for people."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime

import structlog
from aiohttp import web
from prometheus_client.aiohttp import make_aiohttp_handler

from sev_agent.config import HttpSection
from sev_agent.observe.health import Health
from sev_agent.observe.metrics import ProcessMetrics
from sev_agent.observe.page import StatusPage

log = structlog.stdlib.get_logger(__name__)

_SHUTDOWN_SECONDS = 1.0


class HttpEndpoints:
    """Serves until cancelled.

    ``is_alive`` tells whether the daemon's own parts still turn; ``on_listening`` is called once they can be asked.
    """

    def __init__(
        self,
        settings: HttpSection,
        *,
        health: Health,
        metrics: ProcessMetrics,
        page: StatusPage,
        is_alive: Callable[[], bool],
        on_listening: Callable[[], None] | None = None,
    ) -> None:
        self._settings = settings
        self._on_listening = on_listening
        self._health = health
        self._metrics = metrics
        self._page = page
        self._is_alive = is_alive

    async def run(self) -> None:
        """Raises ``OSError`` when the address cannot be bound."""
        app = web.Application()
        app.router.add_get("/", self._status)
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/metrics", make_aiohttp_handler(self._metrics.registry))
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=_SHUTDOWN_SECONDS)
        await runner.setup()
        try:
            site = web.TCPSite(runner, self._settings.host, self._settings.port)
            await site.start()
            log.info("http.listening", addresses=[f"{host}:{port}" for host, port, *_ in runner.addresses])
            if self._on_listening is not None:
                self._on_listening()
            await asyncio.Event().wait()
        finally:
            await runner.cleanup()

    async def _status(self, request: web.Request) -> web.Response:
        del request
        return web.Response(text=self._page.html(), content_type="text/html", headers=self._page.headers)

    async def _healthz(self, request: web.Request) -> web.Response:
        del request
        alive = self._is_alive()
        return web.json_response({"alive": alive}, status=200 if alive else 503)

    async def _readyz(self, request: web.Request) -> web.Response:
        del request
        conditions = {
            name.value: {
                "up": condition.up,
                "reason": condition.reason,
                "since": datetime.fromtimestamp(condition.since, UTC).isoformat(timespec="seconds"),
            }
            for name, condition in self._health.conditions.items()
        }
        ready = self._health.is_ready
        return web.json_response({"ready": ready, "dependencies": conditions}, status=200 if ready else 503)
