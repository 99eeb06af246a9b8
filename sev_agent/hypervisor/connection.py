"""The connection to libvirt: opened, watched, closed and opened again."""

import asyncio
import contextlib
import time
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import libvirt  # noqa: TID251 - this package is the one that may
import structlog

from sev_agent.backoff import Backoff
from sev_agent.config import HypervisorSection
from sev_agent.hypervisor.errors import HypervisorUnavailable, text_of
from sev_agent.hypervisor.event_loop import EventLoop
from sev_agent.hypervisor.events import LifecycleEvent, LifecycleNames
from sev_agent.hypervisor.link import Link
from sev_agent.hypervisor.threads import CallThreads

log = structlog.get_logger(__name__)

T = TypeVar("T")

_FIRST_DELAY = 0.1
_CLOSE_TIMEOUT = 2.0

_MAX_OPENINGS = 3
"""Openings that may hang at once: a frozen libvirtd holds each until it dies, and a thread with it."""


class Hypervisor:
    """A connection that is kept up, its events, and calls over it.

    ``on_event`` gets each lifecycle event of every domain, in libvirt's order. ``on_change`` is told True after every
    connecting, when what was known must be read again (events before it are dropped), and False after every loss
    and for every new ``reason`` that it cannot be opened. Both are called on the asyncio loop, and not once ``run``
    is being cancelled.
    """

    def __init__(
        self,
        settings: HypervisorSection,
        *,
        on_event: Callable[[LifecycleEvent], None],
        on_change: Callable[[bool], None],
    ) -> None:
        self._settings = settings
        self._on_event = on_event
        self._on_change = on_change
        self._event_loop = EventLoop()
        self._names = LifecycleNames()
        self._openings = CallThreads(_MAX_OPENINGS, "libvirt-open")
        self._link: Link | None = None
        self._up = asyncio.Event()
        self._reason: str | None = "not connected yet"

    @property
    def is_up(self) -> bool:
        return self._link is not None

    @property
    def reason(self) -> str | None:
        """Why the hypervisor cannot be used now; None while it can."""
        return self._reason

    @property
    def thread_alive(self) -> bool:
        """Whether libvirt's event loop turns; for the watchdog."""
        return self._event_loop.is_alive

    @property
    def overdue_calls(self) -> int:
        """Calls past their time limit that still hold a thread."""
        return 0 if self._link is None else self._link.overdue

    @property
    def link(self) -> Link:
        """The present connection. Raises ``HypervisorUnavailable`` while there is none."""
        if self._link is None:
            raise self._unavailable()
        return self._link

    async def wait_up(self, limit: float) -> None:
        """Return once connected. Raises ``HypervisorUnavailable`` after ``limit`` seconds."""
        try:
            async with asyncio.timeout(limit):
                await self._up.wait()
        except TimeoutError:
            raise self._unavailable() from None

    async def act(self, function: Callable[[libvirt.virConnect], T], *, limit: float | None = None) -> T:
        """``function`` of the open connection, in a thread, within ``limit`` seconds (default ``call_timeout``).

        Raises ``HypervisorUnavailable`` without a connection, after the limit, and when the connection is lost in the
        call; any other ``libvirtError`` as it is. No libvirt object may leave ``function``.
        """
        return await self.link.act(function, self._settings.call_timeout if limit is None else limit)

    async def look(self, function: Callable[[libvirt.virConnect], T], *, limit: float | None = None) -> T:
        """As ``act``, for a ``function`` that only reads and waits for no guest; it does not queue behind starts."""
        return await self.link.look(function, self._settings.call_timeout if limit is None else limit)

    async def run(self) -> None:
        """Connect, watch, and connect again, until cancelled. Run it once."""
        self._event_loop.start()
        try:
            await self._keep_connected()
        finally:
            self._openings.close("the hypervisor connection has ended")
            if not await asyncio.to_thread(self._event_loop.stop):
                log.error("hypervisor.events.stuck")

    async def _keep_connected(self) -> None:
        backoff = Backoff(_FIRST_DELAY, self._settings.reconnect_max)
        while True:
            try:
                link = await self._open()
            except HypervisorUnavailable as error:
                if self._reason != error.message:  # said once, not at every attempt
                    log.warning("hypervisor.connect.failed", uri=self._settings.uri, reason=error.message)
                    self._reason = error.message
                    self._on_change(False)  # noqa: FBT003 - the callback's one argument
            else:
                opened = time.monotonic()
                await self._stay(link)
                if time.monotonic() - opened > self._settings.reconnect_max:
                    backoff.reset()
            await backoff.pause()

    async def _stay(self, link: Link) -> None:
        """Serve one connection until it is lost."""
        try:
            await self._serve(link)
        finally:
            self._link = None
            self._up.clear()
            await self._close(link)

    async def _serve(self, link: Link) -> None:
        self._link = link
        self._reason = None
        self._up.set()
        log.info("hypervisor.connected", uri=self._settings.uri, driver=link.driver)
        self._on_change(True)  # noqa: FBT003 - the callback's one argument
        cause = await link.lost
        self._link = None
        self._up.clear()
        self._reason = f"connection lost: {cause}"
        log.warning("hypervisor.lost", uri=self._settings.uri, reason=cause)
        self._on_change(False)  # noqa: FBT003 - the callback's one argument

    async def _open(self) -> Link:
        settings = self._settings
        link = Link(self._names, self._deliver, threads=settings.threads)
        keepalive = (settings.keepalive_interval, settings.keepalive_count)
        try:
            await self._openings.run(partial(link.open, settings.uri, keepalive), settings.connect_timeout)
        except HypervisorUnavailable:
            await self._close(link)
            raise HypervisorUnavailable(f"no answer within {settings.connect_timeout:g} s") from None
        except libvirt.libvirtError as error:
            raise HypervisorUnavailable(text_of(error)) from None
        except asyncio.CancelledError:
            await self._close(link)
            raise
        return link

    async def _close(self, link: Link) -> None:
        """A frozen libvirtd keeps a thread, but nobody waiting."""
        link.end("the connection to libvirt is being closed")
        with contextlib.suppress(HypervisorUnavailable):
            await self._openings.run(link.close, _CLOSE_TIMEOUT)

    def _deliver(self, link: Link, event: LifecycleEvent) -> None:
        if link is self._link:
            self._on_event(event)

    def _unavailable(self) -> HypervisorUnavailable:
        return HypervisorUnavailable(
            f"libvirt at {self._settings.uri} cannot be used: {self._reason}",
            remedy="see that libvirtd runs and that this user may use its socket",
        )
