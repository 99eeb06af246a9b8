"""How far the schedulers have come in their queue, by what they have decided."""

import time
from datetime import datetime, timedelta

from sqlalchemy import and_, func, or_, select

from sev_agent.api.database import Database
from sev_agent.api.state import Vm
from sev_agent.api.tables import ServerRow
from sev_agent.api.told import SILENT


class QueueProgress:
    """Their queue is in order: whoever was handed over before one that is decided is in it no more.

    An answer is believed for ``believed`` seconds: to find it, the whole table is read. ``margin`` seconds are left to
    those in the hands of a slow scheduler.
    """

    def __init__(self, database: Database, *, believed: float, margin: float) -> None:
        self._database = database
        self._believed = believed
        self._margin = timedelta(seconds=margin)
        self._asked_at = float("-inf")
        self._newest: datetime | None = None

    async def has_passed(self, moment: datetime) -> bool:
        """Whether nothing that was handed over at ``moment`` can wait there. Raises ``DatabaseUnavailable``."""
        if time.monotonic() - self._asked_at > self._believed:
            self._newest = await self._newest_decided()
            self._asked_at = time.monotonic()
        return self._newest is not None and self._newest > moment + self._margin

    async def _newest_decided(self) -> datetime | None:
        """When the newest server was made that has a host, or a scheduler's word that there is none for it."""
        refused = and_(ServerRow.vm_state == Vm.ERROR.value, ServerRow.fault["code"].as_string() != SILENT)
        asked = select(func.max(ServerRow.created_at)).where(or_(ServerRow.host.is_not(None), refused))
        async with self._database.reading() as session:
            return await session.scalar(asked)
