"""The filters of a list by tags, which microversion 2.26 brought, as conditions on the table."""

from typing import Any

from sqlalchemy import ColumnElement, and_, column, exists, not_, select
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import GenericFunction

from sev_agent.api.faults import BadRequest
from sev_agent.api.server_bodies import MAX_TAGS
from sev_agent.api.tables import ServerRow


class _Elements(GenericFunction[Any]):
    """The elements of a JSON list, as the rows of a table with the column ``value``."""

    name = "json_each"
    inherit_cache = True


@compiles(_Elements, "postgresql")
def _as_postgresql_has_it(element: _Elements, compiler: Any, **arguments: Any) -> str:
    return f"json_array_elements_text{compiler.process(element.clause_expr, **arguments)}"


def tag_conditions(
    *, every: str | None, some: str | None, not_every: str | None, none: str | None
) -> list[ColumnElement[bool]]:
    """What a listed server fulfils; each is tags with commas between them. Raises ``BadRequest``."""
    found: list[ColumnElement[bool]] = []
    if every is not None:
        found.append(_has_every(_tags(every, "tags")))
    if some is not None:
        found.append(_has_some(_tags(some, "tags-any")))
    if not_every is not None:
        found.append(not_(_has_every(_tags(not_every, "not-tags"))))
    if none is not None:
        found.append(not_(_has_some(_tags(none, "not-tags-any"))))
    return found


def _tags(text: str, name: str) -> list[str]:
    tags = text.split(",")
    if len(tags) > MAX_TAGS:
        raise BadRequest("more tags than a server can have", field=f"query.{name}", remedy=f"at most {MAX_TAGS}")
    return tags


def _has_every(tags: list[str]) -> ColumnElement[bool]:
    return and_(*(_has_some([tag]) for tag in tags))


def _has_some(tags: list[str]) -> ColumnElement[bool]:
    elements = _Elements(ServerRow.tags).table_valued(column("value"))
    return exists(select(elements.c.value).where(elements.c.value.in_(tags)))
