"""From the notifications of hosts and schedulers to what is known of servers."""

from uuid import UUID

import structlog
from pydantic import ValidationError
from sqlalchemy import select

from sev_agent.api.casts import Casts
from sev_agent.api.database import Database
from sev_agent.api.metrics import ApiMetrics
from sev_agent.api.tables import ServerRow
from sev_agent.api.told import Effect, Listener, Outcome, Told
from sev_agent.crash_points import CrashPoint, reached
from sev_agent.messaging.envelope import Notification
from sev_agent.uninterrupted import uninterrupted

log = structlog.stdlib.get_logger(__name__)

_PREFIX = "sev.instance."
_SCHEDULE = "schedule"


class _CastFirst(Exception):
    def __init__(self, row: ServerRow, host: str) -> None:
        self.row = row
        self.host = host


class Events:
    """Applies notifications, each once, whatever the order."""

    def __init__(self, database: Database, casts: Casts, listener: Listener, metrics: ApiMetrics) -> None:
        self._database = database
        self._casts = casts
        self._listener = listener
        self._metrics = metrics

    async def hear(self, notification: Notification) -> None:
        """Raises ``Unavailable`` where it could not be applied: then it must be told again."""
        outcome = await self._hear(notification)
        reached(CrashPoint.NEWS_AFTER_COMMIT)
        self._metrics.notifications.labels(outcome.value).inc()

    async def _hear(self, notification: Notification) -> Outcome:
        if not notification.event_type.startswith(_PREFIX):
            return Outcome.IGNORED
        action, _, phase = notification.event_type.removeprefix(_PREFIX).partition(".")
        if phase == "progress":
            return Outcome.IGNORED
        try:
            told = Told.model_validate(notification.payload)
            server_id = str(UUID(told.instance_uuid))
        except (ValidationError, ValueError) as error:
            log.warning("notification.not_understood", event_type=notification.event_type, error=str(error)[:500])
            return Outcome.IGNORED
        done: set[str] = set()
        while True:
            try:
                return await uninterrupted(self._apply(server_id, action, phase, told, done))
            except _CastFirst as wanted:
                # Before it is written down, since what is written down is never cast again; twice does no harm.
                log.info("server.unwanted", instance_uuid=server_id, host=wanted.host)
                await self._casts.terminate(wanted.row, wanted.host)
                done.add(wanted.host)

    async def _apply(self, server_id: str, action: str, phase: str, told: Told, done: set[str]) -> Outcome:
        async with self._database.writing() as session:
            asked = select(ServerRow).where(ServerRow.id == server_id).with_for_update()
            row = (await session.scalars(asked)).one_or_none()
            if row is None:
                return Outcome.UNKNOWN
            before = (row.vm_state, row.task_state)
            effect = self._effect(row, action, phase, told)
            reached(CrashPoint.NEWS_BEFORE_COMMIT)
            if effect.terminate is not None and effect.terminate not in done:
                raise _CastFirst(row, effect.terminate)
            if (row.vm_state, row.task_state) != before:
                log.info(
                    "server.changed",
                    instance_uuid=server_id,
                    vm_state=row.vm_state,
                    task_state=row.task_state,
                    host=row.host,
                )
            return effect.outcome

    def _effect(self, row: ServerRow, action: str, phase: str, told: Told) -> Effect:
        if action == _SCHEDULE:
            return self._listener.by_scheduler(row, phase, told)
        return self._listener.by_host(row, action, told)
