"""Flavors: the sizes that are offered, what each asks of a host, and who may use it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from uuid import uuid4

from sqlalchemy import ColumnElement, or_, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from sev_agent.api.caller import Caller
from sev_agent.api.database import Database
from sev_agent.api.faults import BadRequest, ConflictingRequest, ItemNotFound
from sev_agent.api.paging import PageQuery, after
from sev_agent.api.tables import ExtraSpecRow, FlavorAccessRow, FlavorRow

_SORTABLE = {
    "flavorid": (FlavorRow.flavor_id, None),
    "id": (FlavorRow.flavor_id, None),
    "name": (FlavorRow.name, None),
    "memory_mb": (FlavorRow.memory_mb, None),
    "vcpus": (FlavorRow.vcpus, None),
    "root_gb": (FlavorRow.root_gb, None),
    "is_public": (FlavorRow.is_public, None),
    "created_at": (FlavorRow.created_at, None),
}
_MAX_EXTRA_SPECS = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Flavor:
    """A flavor: ``memory_mb`` MiB, ``root_gb`` GiB."""

    id: str
    name: str
    vcpus: int
    memory_mb: int
    root_gb: int
    is_public: bool = True
    description: str | None = None
    extra_specs: Mapping[str, str] = field(default_factory=dict)


class Flavors:
    """The flavors in the database. A flavor that the caller may not use is, to them, not there."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(self, flavor: Flavor) -> Flavor:
        """Raises ``ConflictingRequest`` where its name or id is taken."""
        flavor = flavor if flavor.id else replace(flavor, id=str(uuid4()))
        row = FlavorRow(
            flavor_id=flavor.id,
            name=flavor.name,
            vcpus=flavor.vcpus,
            memory_mb=flavor.memory_mb,
            root_gb=flavor.root_gb,
            is_public=flavor.is_public,
            description=flavor.description,
            created_at=datetime.now(UTC),
        )
        try:
            async with self._database.writing() as session:
                session.add(row)
                await session.flush()
        except IntegrityError:
            raise ConflictingRequest(f"Flavor with name {flavor.name} or ID {flavor.id} already exists.") from None
        return flavor

    async def page(
        self,
        caller: Caller,
        query: PageQuery,
        *,
        most: int,
        public: bool | None,
        where: Iterable[ColumnElement[bool]] = (),
    ) -> list[Flavor]:
        """One page. ``public`` is for administrators: ``None`` lists all. Raises ``BadRequest``."""
        order = query.order(_SORTABLE, [("flavorid", "asc")])
        order += PageQuery(sort_key=("flavorid",), sort_dir=("asc",)).order(_SORTABLE, [])
        async with self._database.reading() as session:
            asked = select(FlavorRow).where(*where).order_by(*(key.ordering for key in order))
            if not caller.is_admin:
                asked = asked.where(_usable_by(caller))
            elif public is not None:
                asked = asked.where(FlavorRow.is_public.is_(public))
            if query.marker is not None:
                try:
                    marker = await _find(session, query.marker, caller)
                except ItemNotFound:
                    raise BadRequest(f"marker [{query.marker}] not found") from None
                asked = asked.where(after(order, marker))
            rows = (await session.scalars(asked.limit(query.page_size(most)))).all()
            return await _with_extra_specs(session, rows)

    async def get(self, caller: Caller, flavor_id: str) -> Flavor:
        """Raises ``ItemNotFound``."""
        async with self._database.reading() as session:
            row = await _find(session, flavor_id, caller)
            return (await _with_extra_specs(session, [row]))[0]

    async def describe(self, flavor_id: str, description: str | None) -> None:
        async with self._database.writing() as session:
            (await _hold(session, flavor_id)).description = description

    async def delete(self, flavor_id: str) -> None:
        """Servers keep what they were made of."""
        async with self._database.writing() as session:
            await session.delete(await _hold(session, flavor_id))

    async def set_extra_specs(self, flavor_id: str, specs: Mapping[str, str]) -> None:
        """Add or replace these, and leave all others."""
        async with self._database.writing() as session:
            await _hold(session, flavor_id)
            for key, value in specs.items():
                await session.merge(ExtraSpecRow(flavor_id=flavor_id, key=key, value=value))
            await session.flush()
            held = await session.scalars(select(ExtraSpecRow.key).where(ExtraSpecRow.flavor_id == flavor_id))
            if len(held.all()) > _MAX_EXTRA_SPECS:
                raise BadRequest(f"A flavor has at most {_MAX_EXTRA_SPECS} extra specs.")

    async def unset_extra_spec(self, flavor_id: str, key: str) -> None:
        async with self._database.writing() as session:
            await _hold(session, flavor_id)
            spec = await session.get(ExtraSpecRow, (flavor_id, key))
            if spec is None:
                raise ItemNotFound(f"Flavor {flavor_id} has no extra specs with key {key}.")
            await session.delete(spec)

    async def projects(self, flavor_id: str) -> list[str]:
        """Who may use a flavor that is not public. Raises ``ItemNotFound`` for one that is."""
        async with self._database.reading() as session:
            if (await _find(session, flavor_id)).is_public:
                raise ItemNotFound("Access list not available for public flavors.")
            return await _projects(session, flavor_id)

    async def allow(self, flavor_id: str, project_id: str) -> list[str]:
        """Raises ``ConflictingRequest`` where it may already, or where all may."""
        async with self._database.writing() as session:
            if (await _hold(session, flavor_id)).is_public:
                raise ConflictingRequest("Can not add access to a public flavor.")
            if await session.get(FlavorAccessRow, (flavor_id, project_id)) is not None:
                raise ConflictingRequest(
                    f"Flavor access already exists for flavor {flavor_id} and project {project_id}."
                )
            session.add(FlavorAccessRow(flavor_id=flavor_id, project_id=project_id))
            await session.flush()
            return await _projects(session, flavor_id)

    async def disallow(self, flavor_id: str, project_id: str) -> list[str]:
        """Raises ``ItemNotFound``, and ``ConflictingRequest`` for a public flavor."""
        async with self._database.writing() as session:
            if (await _hold(session, flavor_id)).is_public:
                raise ConflictingRequest("Can not remove access from a public flavor.")
            access = await session.get(FlavorAccessRow, (flavor_id, project_id))
            if access is None:
                raise ItemNotFound(f"Flavor access not found for {flavor_id} / {project_id} combination.")
            await session.delete(access)
            await session.flush()
            return await _projects(session, flavor_id)


async def _find(session: AsyncSession, flavor_id: str, caller: Caller | None = None) -> FlavorRow:
    asked = select(FlavorRow).where(FlavorRow.flavor_id == flavor_id)
    if caller is not None and not caller.is_admin:
        asked = asked.where(_usable_by(caller))
    row = (await session.scalars(asked)).one_or_none()
    if row is None:
        raise _not_found(flavor_id)
    return row


async def _hold(session: AsyncSession, flavor_id: str) -> FlavorRow:
    """It, for whoever changes it or what belongs to it: alone until the transaction ends. Raises ``ItemNotFound``."""
    row = await session.get(FlavorRow, flavor_id, with_for_update=True)
    if row is None:
        raise _not_found(flavor_id)
    return row


def _not_found(flavor_id: str) -> ItemNotFound:
    return ItemNotFound(f"Flavor {flavor_id} could not be found.")


def _usable_by(caller: Caller) -> ColumnElement[bool]:
    granted = select(FlavorAccessRow.flavor_id).where(FlavorAccessRow.project_id == caller.project_id)
    return or_(FlavorRow.is_public.is_(True), FlavorRow.flavor_id.in_(granted))


async def _projects(session: AsyncSession, flavor_id: str) -> list[str]:
    asked = select(FlavorAccessRow.project_id).where(FlavorAccessRow.flavor_id == flavor_id)
    return list(await session.scalars(asked.order_by(FlavorAccessRow.project_id)))


async def _with_extra_specs(session: AsyncSession, rows: Iterable[FlavorRow]) -> list[Flavor]:
    rows = list(rows)
    ids = [row.flavor_id for row in rows]
    specs: dict[str, dict[str, str]] = {flavor_id: {} for flavor_id in ids}
    asked = select(ExtraSpecRow).where(ExtraSpecRow.flavor_id.in_(ids)).order_by(ExtraSpecRow.key)
    for spec in await session.scalars(asked):
        specs[spec.flavor_id][spec.key] = spec.value
    return [
        Flavor(
            id=row.flavor_id,
            name=row.name,
            vcpus=row.vcpus,
            memory_mb=row.memory_mb,
            root_gb=row.root_gb,
            is_public=row.is_public,
            description=row.description,
            extra_specs=specs[row.flavor_id],
        )
        for row in rows
    ]
