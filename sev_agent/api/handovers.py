"""Servers that were handed to the schedulers: written down later, so that a creation is one transaction."""

from collections.abc import Iterable
from typing import Final

from sqlalchemy import update

from sev_agent.api.database import Database
from sev_agent.api.tables import ServerRow

_AT_ONCE: Final = 500
"""Rows of one statement: a database takes so many parameters, and no more than some ten thousand."""


class Handovers:
    """What a process has handed over, until the table says so (``casts``).

    Lost with the process, and no harm done: until then a row says that nobody knows whether it was, and the first word
    of a scheduler says that it was. So none that was answered with a failure is handed over by somebody else.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._pending: dict[str, None] = {}

    def remember(self, server_ids: Iterable[str]) -> None:
        """Write it down at the next ``settle``."""
        self._pending |= dict.fromkeys(server_ids)

    async def settle(self) -> None:
        """Write down what is pending, of those that no scheduler has spoken of. Raises ``DatabaseUnavailable``."""
        ids = tuple(self._pending)
        for start in range(0, len(ids), _AT_ONCE):
            portion = ids[start : start + _AT_ONCE]
            async with self._database.writing() as session:
                unsaid = (ServerRow.id.in_(portion), ServerRow.casts == 0)
                await session.execute(update(ServerRow).where(*unsaid).values(casts=1))
            for each in portion:
                self._pending.pop(each, None)
