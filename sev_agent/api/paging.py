"""Pages of a list: in an order, after a marker, up to a limit."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, cast
from urllib.parse import urlencode

from pydantic import Field
from sqlalchemy import ColumnElement, and_, func, or_
from sqlalchemy.orm import InstrumentedAttribute

from sev_agent.api.faults import BadRequest
from sev_agent.api.routes import Query

_MAX_KEYS = 8

Keys = Annotated[tuple[Annotated[str, Field(max_length=64)], ...], Field(max_length=_MAX_KEYS)]


class PageQuery(Query):
    """The parameters that every list has. ``limit`` is at most what the service allows."""

    limit: Annotated[int, Field(ge=0)] | None = None
    marker: Annotated[str, Field(max_length=255)] | None = None
    sort_key: Keys = ()
    sort_dir: Keys = ()

    def page_size(self, most: int) -> int:
        return most if self.limit is None else min(self.limit, most)

    def order(self, known: Mapping[str, "Column"], default: Sequence[tuple[str, str]]) -> list["Sorted"]:
        """The columns to sort by; ``known`` are those that may be asked for. Raises ``BadRequest``."""
        asked, directions = list(self.sort_key), list(self.sort_dir)
        if len(directions) > max(len(asked), 1):
            raise BadRequest("Sort direction size exceeds sort key size")
        if not asked:
            keys = [(name, directions[0] if directions else direction) for name, direction in default]
        else:
            directions += [directions[-1] if directions else "desc"] * (len(asked) - len(directions))
            keys = list(zip(asked, directions, strict=True))
        for name, direction in keys:
            if name not in known:
                what = f"Invalid input for field/attribute sort_key. Value: {name}"
                raise BadRequest(what, remedy=f"one of {', '.join(sorted(known))}")
            if direction not in {"asc", "desc"}:
                what = f"Invalid input for field/attribute sort_dir. Value: {direction}"
                raise BadRequest(what, remedy="asc or desc")
        return [Sorted(known[name], descending=direction == "desc") for name, direction in keys]


Column = tuple[InstrumentedAttribute[Any], Any]
"""A mapped column, and what stands for NULL in it when rows are compared."""


class Sorted:
    """One column of an order."""

    def __init__(self, column: Column, *, descending: bool) -> None:
        self.attribute, self.for_null = column
        self.descending = descending
        self.expression: ColumnElement[Any] = (
            cast("ColumnElement[Any]", self.attribute)
            if self.for_null is None
            else func.coalesce(self.attribute, self.for_null)
        )

    @property
    def ordering(self) -> ColumnElement[Any]:
        return self.expression.desc() if self.descending else self.expression.asc()

    def value_of(self, row: Any) -> Any:
        value = getattr(row, self.attribute.key)
        return self.for_null if value is None else value


def after(order: Sequence[Sorted], row: Any) -> ColumnElement[bool]:
    """The condition of what comes after ``row``. The last of ``order`` must be unique."""
    alternatives = []
    for index, last in enumerate(order):
        same = [key.expression == key.value_of(row) for key in order[:index]]
        value = last.value_of(row)
        alternatives.append(and_(*same, last.expression < value if last.descending else last.expression > value))
    return or_(*alternatives)


def next_links(base: str, path: str, query: Query, last_id: str) -> list[dict[str, str]]:
    """The link to the page after the one that ends with ``last_id``."""
    given = query.model_dump(exclude_none=True, exclude_defaults=True, by_alias=True)
    parameters = urlencode({**given, "marker": last_id}, doseq=True)
    return [{"rel": "next", "href": f"{base}{path}?{parameters}"}]
