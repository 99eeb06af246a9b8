"""What this host tells the world: its notifications, and what stands in them."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from sev_agent.compute.outbox import Outbox
from sev_agent.compute.record import Record
from sev_agent.compute.record_store import RecordStore
from sev_agent.crash_points import CrashPoint, reached
from sev_agent.errors import SevAgentError
from sev_agent.messaging.envelope import Notification, Priority, RequestContext
from sev_agent.messaging.spool import Letter
from sev_agent.schema import Phase
from sev_agent.uninterrupted import in_thread, uninterrupted


class Announcements:
    """Makes notifications, and hands them to the outbox.

    ``updated_at`` in each about an instance is when that became so: what brings an older one than a listener has heard
    of is no news to it.
    """

    def __init__(self, outbox: Outbox, store: RecordStore, host: str) -> None:
        self._outbox = outbox
        self._store = store
        self._host = host

    def create(self, record: Record, phase: Phase, **details: Any) -> None:
        """``sev.instance.create.<phase>``, for a start or a progress; a crash may lose it."""
        self._outbox.post(self._about(record, "create", phase, details))

    def delete(self, record: Record, phase: Phase, **details: Any) -> None:
        """``sev.instance.delete.<phase>``, as ``create``."""
        self._outbox.post(self._about(record, "delete", phase, details))

    def power(self, record: Record, action: str, phase: Phase, **details: Any) -> None:
        """``sev.instance.<action>.<phase>`` of a start, a stop or a reboot, as ``create``."""
        self._outbox.post(self._about(record, action, phase, details))

    async def conclude(self, record: Record, action: str, phase: Phase, **details: Any) -> None:
        """Save ``record`` and tell ``sev.instance.<action>.<phase>`` of it: both, or neither, whatever happens.

        For the end or the error of an operation. Raises what ``RecordStore.save`` raises; then nothing is told.
        """
        await uninterrupted(self._conclude(record, self._about(record, action, phase, details)))

    async def _conclude(self, record: Record, letter: Letter) -> None:
        reached(CrashPoint.CONCLUDE_BEFORE_SAVE)
        await in_thread(self._store.save, record, owing=letter)
        reached(CrashPoint.CONCLUDE_AFTER_SAVE)
        self._outbox.post(letter, owed_by=record.uuid)
        reached(CrashPoint.CONCLUDE_AFTER_NOTICE)

    async def deleted(self, uuid: UUID, request_id: str) -> None:
        """``sev.instance.delete.end`` for an instance that this host does not have any more.

        Returns once it is safe, so that the request may be acknowledged.
        """
        payload = {"instance_uuid": str(uuid), "state": "deleted", "updated_at": _now()}
        await self._outbox.post_safely(self._letter("sev.instance.delete.end", payload, request_id))

    async def refused(self, uuid: str | None, request_id: str, error: SevAgentError, *, action: str = "create") -> None:
        """``sev.instance.<action>.error`` for a request that was never accepted. Returns once it is safe."""
        fault = {"code": error.code, "message": error.message, "field": error.field, "remedy": error.remedy}
        payload = {"instance_uuid": uuid, "state": "refused", "updated_at": _now(), "fault": fault}
        letter = self._letter(f"sev.instance.{action}.error", payload, request_id, Priority.ERROR)
        await self._outbox.post_safely(letter)

    def host(self, what: str, details: Mapping[str, Any]) -> None:
        """``sev.host.<what>``."""
        self._outbox.post(self._letter(f"sev.host.{what}", details, None))

    def _about(self, record: Record, action: str, phase: Phase, details: Mapping[str, Any]) -> Letter:
        payload = {
            "instance_uuid": str(record.uuid),
            "name": record.instance.name,
            "project_id": record.instance.project_id,
            "state": record.state.value,
            "updated_at": record.updated_at.isoformat(),
            "generation": record.generation.value if record.generation else None,
            "fault": record.fault.model_dump(mode="json") if record.fault else None,
            **details,
        }
        priority = Priority.ERROR if phase == "error" else Priority.INFO
        return self._letter(f"sev.instance.{action}.{phase}", payload, record.request_id, priority)

    def _letter(
        self, event_type: str, payload: Mapping[str, Any], request_id: str | None, priority: Priority = Priority.INFO
    ) -> Letter:
        context = RequestContext(request_id=request_id) if request_id else RequestContext()
        return self._outbox.letter(
            Notification(
                event_type=event_type,
                payload={"host": self._host, **payload},
                publisher_id=f"sev_agent.{self._host}",
                priority=priority,
                context=context,
            )
        )


def _now() -> str:
    return datetime.now(UTC).isoformat()
