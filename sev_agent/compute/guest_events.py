"""What libvirt tells of guests, and how soon it is acted upon."""

import asyncio
from collections.abc import Callable
from typing import Final
from uuid import UUID

import structlog

from sev_agent.hypervisor.events import Lifecycle, LifecycleEvent

log = structlog.stdlib.get_logger(__name__)

_HOLD_SECONDS: Final = 3.0

_RELEVANT: Final = frozenset({Lifecycle.STARTED, Lifecycle.STOPPED, Lifecycle.CRASHED, Lifecycle.UNDEFINED})
"""Events after which a guest may hold a slot that it did not hold before, or no longer.

Not SHUTDOWN: QEMU still runs then, and what it leads to follows as STOPPED.
"""

_BY_ITSELF: Final = "shutdown"
"""The detail of STOPPED where the guest's own system ended it."""


class GuestEvents:
    """Has the instance of each event that matters looked at by ``mark``.

    A guest that cannot be reset in place reboots by STOPPED and STARTED, which must not flap the count. So where a
    guest ended itself it is left alone for ``hold`` seconds, in which ``holds`` says so (Nova waits 15 s for the same
    reason). Whatever else happens to it ends that, and is acted upon at once. Guests that an operation works on, by
    ``in_flight``, need no such care.
    """

    def __init__(
        self,
        *,
        mark: Callable[[UUID], None],
        on_stopped: Callable[[UUID], None],
        in_flight: Callable[[UUID], bool],
        hold: float = _HOLD_SECONDS,
    ) -> None:
        self._mark = mark
        self._on_stopped = on_stopped
        self._in_flight = in_flight
        self._hold = hold
        self._held: dict[UUID, asyncio.TimerHandle] = {}

    def holds(self, uuid: UUID) -> bool:
        """Whether the guest ended itself a moment ago, and may be about to start again."""
        return uuid in self._held

    def on_event(self, event: LifecycleEvent) -> None:
        """Take one event of one domain, on the asyncio loop."""
        log.debug("hypervisor.event", instance_uuid=str(event.uuid), event_name=event.event, detail=event.detail)
        if event.event not in _RELEVANT:
            return
        if (timer := self._held.pop(event.uuid, None)) is not None:
            timer.cancel()
        if event.event is Lifecycle.STOPPED:
            self._on_stopped(event.uuid)
            if event.detail == _BY_ITSELF and not self._in_flight(event.uuid):
                loop = asyncio.get_running_loop()
                self._held[event.uuid] = loop.call_later(self._hold, self._let_go, event.uuid)
                return
        self._mark(event.uuid)

    def _let_go(self, uuid: UUID) -> None:
        del self._held[uuid]
        self._mark(uuid)
