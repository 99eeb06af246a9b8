"""One opened connection, from its opening to its end; never used again after it."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeVar
from uuid import UUID

import libvirt  # noqa: TID251 - this package is the one that may
import structlog

from sev_agent.hypervisor.errors import HypervisorError, HypervisorUnavailable
from sev_agent.hypervisor.events import Lifecycle, LifecycleEvent, LifecycleNames
from sev_agent.hypervisor.facts import FactsCache
from sev_agent.hypervisor.threads import CallThreads

log = structlog.get_logger(__name__)

T = TypeVar("T")

_CLOSE_REASONS = {
    libvirt.VIR_CONNECT_CLOSE_REASON_ERROR: "input or output error",
    libvirt.VIR_CONNECT_CLOSE_REASON_EOF: "libvirtd closed it or ended",
    libvirt.VIR_CONNECT_CLOSE_REASON_KEEPALIVE: "libvirtd answers no keepalive",
}

_XML_KEEPERS = frozenset({Lifecycle.SUSPENDED, Lifecycle.RESUMED, Lifecycle.PMSUSPENDED, Lifecycle.REBOOTED})
"""Events after which a domain's XML is what it was."""


class Link:
    """A connection, what was registered with it, and what was learnt over it.

    It belongs to the asyncio loop, but for ``open`` and ``close``, which block and go into threads. Each event is
    handed to ``deliver`` on the loop. ``lost`` gets the reason when the connection ends by itself.

    It has threads of its own: calls that hang on a dead connection must not keep the next one's calls waiting.
    ``threads`` is how many calls libvirtd sees at once.
    """

    def __init__(
        self, names: LifecycleNames, deliver: Callable[["Link", LifecycleEvent], None], *, threads: int
    ) -> None:
        self._names = names
        self._deliver = deliver
        self._loop = asyncio.get_running_loop()
        self._guard = threading.Lock()
        self._handle: libvirt.virConnect | None = None
        self._users = 0
        self._unwanted = False
        self._callbacks: list[int] = []
        # Starting a guest takes long. Looking never waits for a guest, so one thread is enough for it.
        self._acts = CallThreads(threads - 1, "libvirt-act")
        self._looks = CallThreads(1, "libvirt-look")
        self.driver = ""
        self.facts = FactsCache()
        self.lost: asyncio.Future[str] = self._loop.create_future()

    @property
    def overdue(self) -> int:
        return self._acts.overdue + self._looks.overdue

    async def act(self, function: Callable[[libvirt.virConnect], T], limit: float) -> T:
        """``function`` of the connection, in a thread. It may change things, and may wait for a guest."""
        return await self._acts.run(partial(self._call, function), limit)

    async def look(self, function: Callable[[libvirt.virConnect], T], limit: float) -> T:
        """``function`` of the connection, in a thread that acts do not hold up. It must wait for no guest."""
        return await self._looks.run(partial(self._call, function), limit)

    def end(self, reason: str) -> None:
        """Deliver nothing from now on, and fail all calls. ``close`` must follow."""
        self._discard()
        self._acts.close(reason)
        self._looks.close(reason)

    def open(self, uri: str, keepalive: tuple[int, int]) -> None:
        """Connect, register, and keep alive with ``keepalive``: seconds between probes, probes that may go unanswered.

        Raises ``libvirtError``. If it was ended meanwhile, the connection is closed at once.
        """
        handle = libvirt.open(uri)
        with self._guard:
            self._handle = handle
            self._users = 1
        try:
            self._prepare(handle, keepalive)
        except BaseException:
            self._discard()
            raise
        finally:
            self._leave()

    def close(self) -> None:
        """Close the connection, unless a call still uses it: then that call does so when it returns.

        Closing talks to libvirtd, and blocks while that is frozen.
        """
        self._discard()
        with self._guard:
            self._users += 1
        self._leave()

    def _call(self, function: Callable[[libvirt.virConnect], T]) -> T:
        """In a thread. A loss in the call becomes ``HypervisorUnavailable``."""
        with self._use() as handle:
            try:
                return function(handle)
            except (libvirt.libvirtError, HypervisorError) as error:
                # After a loss libvirt's codes differ by call (often an internal error); only the question helps.
                if _is_alive(handle):
                    raise
                # It fails this call too, and does it before the loop comes to the answer.
                self._report_loss("found dead by a call")
                raise HypervisorUnavailable(str(error)) from None

    def _discard(self) -> None:
        """Whoever uses it last closes it."""
        with self._guard:
            self._unwanted = True

    @contextlib.contextmanager
    def _use(self) -> Iterator[libvirt.virConnect]:
        with self._guard:
            if self._handle is None or self._unwanted:
                raise HypervisorUnavailable("the connection to libvirt is closed", remedy="retry")
            handle = self._handle
            self._users += 1
        try:
            yield handle
        finally:
            self._leave()

    def _leave(self) -> None:
        """The last user of a discarded connection closes it: libvirt frees it under a call that still runs on it."""
        with self._guard:
            self._users -= 1
            if self._users or not self._unwanted:
                return
            handle, self._handle = self._handle, None
        if handle is not None:
            self._close(handle)

    def _close(self, handle: libvirt.virConnect) -> None:
        for callback in self._callbacks:
            with contextlib.suppress(libvirt.libvirtError):
                handle.domainEventDeregisterAny(callback)
        with contextlib.suppress(libvirt.libvirtError):
            handle.close()

    def _prepare(self, handle: libvirt.virConnect, keepalive: tuple[int, int]) -> None:
        self.driver = handle.getType()
        with _optional():  # libvirt's in-process test driver has neither
            handle.registerCloseCallback(self._on_close, None)
        with _optional():
            handle.setKeepAlive(*keepalive)
        register = handle.domainEventRegisterAny
        self._callbacks.append(register(None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, self._on_lifecycle, None))
        with _optional():
            self._callbacks.append(register(None, libvirt.VIR_DOMAIN_EVENT_ID_REBOOT, self._on_reboot, None))
        with _optional():
            self._callbacks.append(register(None, libvirt.VIR_DOMAIN_EVENT_ID_METADATA_CHANGE, self._on_metadata, None))

    # The callbacks below run in the event loop's thread.

    def _on_lifecycle(self, _c: Any, domain: libvirt.virDomain, event: int, detail: int, _opaque: None) -> None:
        kind = self._names.event(event)
        self._send(domain, kind, self._names.detail(kind, detail))

    def _on_reboot(self, _connection: Any, domain: libvirt.virDomain, _opaque: None) -> None:
        self._send(domain, Lifecycle.REBOOTED, "")

    def _on_metadata(self, _c: Any, domain: libvirt.virDomain, _kind: int, _uri: str, _opaque: None) -> None:
        self._enter(self.facts.forget, UUID(bytes=domain.UUID()))

    def _on_close(self, _connection: Any, reason: int, _opaque: None) -> None:
        self._report_loss(_CLOSE_REASONS.get(reason, f"libvirt's reason {reason}"))

    def _send(self, domain: libvirt.virDomain, event: Lifecycle, detail: str) -> None:
        received = time.monotonic()
        identifier = UUID(bytes=domain.UUID())
        happened = LifecycleEvent(uuid=identifier, name=domain.name(), event=event, detail=detail, received=received)
        self._enter(self._receive, happened)

    def _report_loss(self, reason: str) -> None:
        self._enter(self._lose, reason)

    def _enter(self, function: Callable[[T], None], value: T) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has closed: nobody listens any more
            self._loop.call_soon_threadsafe(function, value)

    # Those below run on the asyncio loop.

    def _receive(self, event: LifecycleEvent) -> None:
        if event.event not in _XML_KEEPERS:
            self.facts.forget(event.uuid)
        if not self._unwanted:
            self._deliver(self, event)

    def _lose(self, reason: str) -> None:
        if not self.lost.done():
            self.lost.set_result(reason)
            self.end(f"the connection to libvirt was lost ({reason})")


def _is_alive(handle: libvirt.virConnect) -> bool:
    try:
        return bool(handle.isAlive())
    except libvirt.libvirtError:
        return False


@contextlib.contextmanager
def _optional() -> Iterator[None]:
    """Do without what the driver does not support."""
    try:
        yield
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_NO_SUPPORT:
            raise
