"""What this host tells the world: notifications, queued in order and sent by one task."""

import asyncio
from collections import deque
from collections.abc import Mapping
from typing import Any, Final
from uuid import UUID

import structlog

from sev_agent.compute.record import Record
from sev_agent.errors import SevAgentError, Unavailable
from sev_agent.messaging.envelope import Notification, Priority, RequestContext
from sev_agent.messaging.notifications import Notifier
from sev_agent.schema import Phase
from sev_agent.uninterrupted import raise_if_cancelled

log = structlog.stdlib.get_logger(__name__)

MAX_WAITING: Final = 10_000
"""Notifications kept while the broker is away; beyond it the oldest go, with a log line each."""

_RETRY_SECONDS = 1.0
_FLUSH_SECONDS = 2.0


class Announcements:
    """Takes notifications at once, and sends them as the broker takes them, in order."""

    def __init__(self, notifier: Notifier, host: str) -> None:
        self._notifier = notifier
        self._host = host
        self._waiting: deque[Notification] = deque()
        self._arrived = asyncio.Event()

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    async def run(self) -> None:
        """Send until cancelled; then send what is left, within two seconds."""
        try:
            while True:
                raise_if_cancelled()
                await self._arrived.wait()
                self._arrived.clear()
                await self._send_all()
        finally:
            try:
                async with asyncio.timeout(_FLUSH_SECONDS):
                    while self._waiting:
                        await self._send_first()
            except (SevAgentError, TimeoutError) as error:
                log.warning("announcements.unsent", left=self.waiting, error=str(error))

    def create(self, record: Record, phase: Phase, **details: Any) -> None:
        """``sev.instance.create.<phase>``."""
        self._about(record, "create", phase, details)

    def delete(self, record: Record, phase: Phase, **details: Any) -> None:
        """``sev.instance.delete.<phase>``."""
        self._about(record, "delete", phase, details)

    def power(self, record: Record, action: str, phase: Phase, **details: Any) -> None:
        """``sev.instance.<action>.<phase>`` of a start, a stop or a reboot."""
        self._about(record, action, phase, details)

    def deleted(self, uuid: UUID, request_id: str) -> None:
        """``sev.instance.delete.end`` for an instance that this host does not have any more."""
        self._put("sev.instance.delete.end", {"instance_uuid": str(uuid), "state": "deleted"}, request_id)

    def refused(self, uuid: str | None, request_id: str, error: SevAgentError, *, action: str = "create") -> None:
        """``sev.instance.<action>.error`` for a request that was never accepted."""
        fault = {"code": error.code, "message": error.message, "field": error.field, "remedy": error.remedy}
        payload = {"instance_uuid": uuid, "state": "refused", "fault": fault}
        self._put(f"sev.instance.{action}.error", payload, request_id, Priority.ERROR)

    def host(self, what: str, details: Mapping[str, Any]) -> None:
        """``sev.host.<what>``."""
        self._put(f"sev.host.{what}", details, None)

    def _about(self, record: Record, action: str, phase: Phase, details: Mapping[str, Any]) -> None:
        payload = {
            "instance_uuid": str(record.uuid),
            "name": record.instance.name,
            "project_id": record.instance.project_id,
            "state": record.state.value,
            "generation": record.generation.value if record.generation else None,
            "fault": record.fault.model_dump(mode="json") if record.fault else None,
            **details,
        }
        priority = Priority.ERROR if phase == "error" else Priority.INFO
        self._put(f"sev.instance.{action}.{phase}", payload, record.request_id, priority)

    def _put(
        self, event_type: str, payload: Mapping[str, Any], request_id: str | None, priority: Priority = Priority.INFO
    ) -> None:
        context = RequestContext(request_id=request_id) if request_id else RequestContext()
        notification = Notification(
            event_type=event_type,
            payload={"host": self._host, **payload},
            publisher_id=f"sev_agent.{self._host}",
            priority=priority,
            context=context,
        )
        if len(self._waiting) == MAX_WAITING:
            lost = self._waiting.popleft()
            log.error("announcements.dropped", event_type=lost.event_type, message_id=lost.message_id)
        self._waiting.append(notification)
        self._arrived.set()

    async def _send_all(self) -> None:
        while self._waiting:
            try:
                await self._send_first()
            except Unavailable:
                await asyncio.sleep(_RETRY_SECONDS)

    async def _send_first(self) -> None:
        """It leaves the queue only when the broker has it: a stop in between may send it twice, but never loses it."""
        notification = self._waiting[0]
        await self._notifier.send(notification)
        if self._waiting and self._waiting[0] is notification:
            self._waiting.popleft()
