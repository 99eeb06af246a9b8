"""Servers whose creation was answered with a failure: nothing of them may stay, whatever was away at that moment."""

import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Final

import structlog
from sqlalchemy import select

from sev_agent.api.database import Database, DatabaseUnavailable
from sev_agent.api.state import Task
from sev_agent.api.tables import ServerRow
from sev_agent.api.told import Listener

log = structlog.stdlib.get_logger(__name__)

_REMEMBERED: Final = 900.0
"""Seconds for which a row is looked for that is not there: a commit of which nobody knows may still come to pass."""

_AT_ONCE: Final = 500
"""Rows of one transaction: a database takes so many parameters, and no more than some ten thousand."""

ASK_AT_ONCE: Final = 2
"""Looks that a row has behind it whose host is told to delete it at the next."""


class Withdrawals:
    """What a process has to put away. Lost with it: who was killed may have answered nothing, too."""

    def __init__(self, database: Database, listener: Listener) -> None:
        self._database = database
        self._listener = listener
        self._pending: dict[str, float] = {}

    def remember(self, server_ids: Iterable[str]) -> None:
        """Put them away at the next ``settle``."""
        until = time.monotonic() + _REMEMBERED
        self._pending |= dict.fromkeys(server_ids, until)

    async def withdraw(self, server_ids: Iterable[str]) -> None:
        """Put them away now, or as soon as the database is there."""
        self.remember(server_ids)
        try:
            await self.settle()
        except DatabaseUnavailable as error:
            log.warning("server.withdraw.postponed", instance_uuids=list(self._pending), error=str(error))

    async def settle(self) -> None:
        """Put away what is pending. Raises ``DatabaseUnavailable``."""
        ids = tuple(self._pending)
        for start in range(0, len(ids), _AT_ONCE):
            await self._settle(ids[start : start + _AT_ONCE])

    async def _settle(self, ids: Sequence[str]) -> None:
        async with self._database.writing() as session:
            asked = select(ServerRow).where(ServerRow.id.in_(ids)).with_for_update()
            rows = list(await session.scalars(asked))
            for row in rows:
                if row.deleted_at is None:
                    self._put_away(row)
        now, found = time.monotonic(), {row.id for row in rows}
        for each in ids:
            # One whose time was over while the database was away was looked for just now, for the last time.
            if each in found or self._pending.get(each, now) <= now:
                self._pending.pop(each, None)
        if found:
            log.info("server.withdrawn", instance_uuids=sorted(found))

    def _put_away(self, row: ServerRow) -> None:
        """As deleted, and not gone: a cast whose confirmation was lost is heard of later, and undone then."""
        if row.host is None:
            self._listener.forget(row)
            return
        # It has come so far that nobody may speak of it any more.
        now = datetime.now(UTC)
        row.task_state, row.updated_at = Task.DELETING.value, now
        row.look_at, row.looks = now, ASK_AT_ONCE
