"""The servers in the database: who may see which, and their changes."""

from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, select
from sqlalchemy.ext.asyncio import AsyncSession

from sev_agent.api.caller import Caller
from sev_agent.api.database import Database
from sev_agent.api.faults import BadRequest, ItemNotFound
from sev_agent.api.paging import Sorted, after
from sev_agent.api.quota import QuotaExceeded
from sev_agent.api.tables import ServerRow

_LAST = Sorted((ServerRow.id, None), descending=True)
"""What makes every order complete."""


class Servers:
    """A server of another project is, to a tenant, not there."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def page(
        self,
        caller: Caller,
        where: Iterable[ColumnElement[bool]],
        order: Iterable[Sorted],
        *,
        marker: str | None,
        limit: int,
    ) -> list[ServerRow]:
        """Raises ``BadRequest`` for a marker that is gone."""
        keys = [*order, _LAST]
        async with self._database.reading() as session:
            asked = select(ServerRow).where(*where).order_by(*(key.ordering for key in keys)).limit(limit)
            if marker is not None:
                asked = asked.where(after(keys, await _marker(session, caller, marker)))
            return list(await session.scalars(asked))

    async def get(self, caller: Caller, server_id: str) -> ServerRow:
        """Raises ``ItemNotFound``."""
        async with self._database.reading() as session:
            return await find(session, caller, server_id)

    async def change(self, caller: Caller, server_id: str, change: Callable[[ServerRow], None]) -> ServerRow:
        """Do ``change`` to it, alone. Raises ``ItemNotFound``, and what ``change`` raises; then nothing is changed."""
        async with self._database.writing() as session:
            row = await find(session, caller, server_id, for_update=True)
            change(row)
            row.updated_at = datetime.now(UTC)
            return row


async def find(session: AsyncSession, caller: Caller, server_id: str, *, for_update: bool = False) -> ServerRow:
    """Raises ``ItemNotFound``."""
    try:
        known = str(UUID(server_id))
    except ValueError:
        raise _not_found(server_id) from None
    asked = select(ServerRow).where(ServerRow.id == known, ServerRow.deleted_at.is_(None))
    if not caller.is_admin:
        asked = asked.where(ServerRow.project_id == caller.project_id)
    row = (await session.scalars(asked.with_for_update() if for_update else asked)).one_or_none()
    if row is None:
        raise _not_found(server_id)
    return row


async def _marker(session: AsyncSession, caller: Caller, marker: str) -> ServerRow:
    # One that was deleted since still marks its place.
    asked = select(ServerRow).where(ServerRow.id == marker)
    if not caller.is_admin:
        asked = asked.where(ServerRow.project_id == caller.project_id)
    row = (await session.scalars(asked)).one_or_none()
    if row is None:
        raise BadRequest(f"marker [{marker}] not found")
    return row


def _not_found(server_id: str) -> ItemNotFound:
    return ItemNotFound(f"Instance {server_id} could not be found.")


def merged(held: Mapping[str, str], more: Mapping[str, str], most: int) -> dict[str, Any]:
    """Both, the second winning. Raises ``QuotaExceeded`` where they are too many."""
    both = {**held, **more}
    if len(both) > most:
        raise QuotaExceeded(f"Maximum number of metadata items exceeds {most}", field="metadata")
    return both
