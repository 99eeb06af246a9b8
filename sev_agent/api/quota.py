"""What a project may have, and has."""

from collections.abc import Iterator
from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncSession

from sev_agent.api.faults import Forbidden
from sev_agent.api.tables import ProjectRow, ServerRow
from sev_agent.config import QuotaSection


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What the servers of a project take; ``ram_mb`` is MiB."""

    servers: int
    vcpus: int
    ram_mb: int

    def times(self, count: int) -> "Usage":
        return Usage(servers=self.servers * count, vcpus=self.vcpus * count, ram_mb=self.ram_mb * count)


class QuotaExceeded(Forbidden):
    """The project would have more than it may."""

    code = "api.quota"


async def usage(session: AsyncSession, project_id: str) -> Usage:
    counted = select(
        func.count(), func.coalesce(func.sum(ServerRow.vcpus), 0), func.coalesce(func.sum(ServerRow.memory_mb), 0)
    ).where(ServerRow.project_id == project_id, ServerRow.deleted_at.is_(None))
    servers, vcpus, ram_mb = (await session.execute(counted)).one()
    return Usage(servers=int(servers), vcpus=int(vcpus), ram_mb=int(ram_mb))


async def hold(session: AsyncSession, owner: str) -> None:
    """Lock a project, or a user, until the transaction ends: no two requests can both take the last of a quota."""
    insert = postgresql.insert if session.get_bind().dialect.name == "postgresql" else sqlite.insert
    await session.execute(insert(ProjectRow).values(project_id=owner).on_conflict_do_nothing())
    await session.execute(select(ProjectRow).where(ProjectRow.project_id == owner).with_for_update())


def check(limits: QuotaSection, used: Usage, asked: Usage) -> None:
    """Raises ``QuotaExceeded`` that names every limit that would be passed."""
    over = list(_over(limits, used, asked))
    if over:
        raise QuotaExceeded("Quota exceeded for " + "; ".join(over), remedy="delete servers, or ask for a larger quota")


def affordable(limits: QuotaSection, used: Usage, each: Usage, *, least: int, most: int) -> int:
    """How many servers that take ``each`` are within ``limits``: ``most``, or fewer, as in Nova.

    Raises ``QuotaExceeded`` where they would be under ``least``.
    """
    for count in range(most, least, -1):
        if not any(_over(limits, used, each.times(count))):
            return count
    check(limits, used, each.times(least))
    return least


def _over(limits: QuotaSection, used: Usage, asked: Usage) -> Iterator[str]:
    for name, unit in (("servers", "instances"), ("vcpus", "cores"), ("ram_mb", "ram")):
        limit, has, wants = getattr(limits, name), getattr(used, name), getattr(asked, name)
        if limit >= 0 and has + wants > limit:
            yield f"{unit}: Requested {wants}, but already used {has} of {limit} {unit}"
