"""Which servers a list shows: the filters of the compute API, as conditions on the table."""

import re
from datetime import UTC, datetime
from typing import Annotated, Any, Final

from pydantic import Field
from sqlalchemy import ColumnElement, and_, false, or_, true

from sev_agent.api.caller import Caller
from sev_agent.api.faults import BadRequest, Forbidden
from sev_agent.api.folding import folded, lowered
from sev_agent.api.microversion import Microversion
from sev_agent.api.paging import PageQuery
from sev_agent.api.state import FOREIGN_STATUSES, STATUSES
from sev_agent.api.tables import ServerRow
from sev_agent.api.tag_filters import tag_conditions

_FILTERS_BY_TAGS: Final = Microversion(2, 26)
_BAD_STATUS_IS_REFUSED: Final = Microversion(2, 38)
_NEVER: Final = datetime(1970, 1, 1, tzinfo=UTC)

SORTABLE: Final = {
    "created_at": (ServerRow.created_at, None),
    "updated_at": (ServerRow.updated_at, None),
    "launched_at": (ServerRow.launched_at, _NEVER),
    "display_name": (ServerRow.name, None),
    "name": (ServerRow.name, None),
    "uuid": (ServerRow.id, None),
    "project_id": (ServerRow.project_id, None),
    "user_id": (ServerRow.user_id, None),
    "vm_state": (ServerRow.vm_state, None),
    "task_state": (ServerRow.task_state, ""),
    "image_ref": (ServerRow.image_id, None),
    "key_name": (ServerRow.key_name, ""),
    "launch_index": (ServerRow.launch_index, None),
}
FOR_ADMINS: Final = {"host": (ServerRow.host, ""), "node": (ServerRow.host, "")}

_Value = Annotated[str, Field(max_length=255)]


class ServerQuery(PageQuery):
    """The filters that mean something here; a tenant's use of an administrator's is ignored, as are unknown ones."""

    name: _Value | None = None
    status: _Value | None = None
    flavor: _Value | None = None
    image: _Value | None = None
    uuid: _Value | None = None
    key_name: _Value | None = None
    reservation_id: _Value | None = None
    vm_state: _Value | None = None
    task_state: _Value | None = None
    host: _Value | None = None
    node: _Value | None = None
    user_id: _Value | None = None
    project_id: _Value | None = None
    tenant_id: _Value | None = None
    deleted: _Value | None = None
    all_tenants: _Value | None = None
    changes_since: _Value | None = Field(default=None, alias="changes-since")
    tags: _Value | None = None
    tags_any: _Value | None = Field(default=None, alias="tags-any")
    not_tags: _Value | None = Field(default=None, alias="not-tags")
    not_tags_any: _Value | None = Field(default=None, alias="not-tags-any")
    ip: _Value | None = None
    ip6: _Value | None = None


def conditions(query: ServerQuery, caller: Caller, version: Microversion) -> list[ColumnElement[bool]]:
    """All of which a listed server fulfils. Raises ``BadRequest``, ``Forbidden``."""
    if query.ip is not None or query.ip6 is not None:
        raise BadRequest("servers cannot be filtered by address: none is known here", field="query.ip")
    found = [_of_project(query, caller), _of_time(query, caller)]
    if query.name is not None:
        found.append(_named(query.name))
    if query.status is not None:
        found.append(_of_status(query.status, version))
    if version >= _FILTERS_BY_TAGS:
        found += tag_conditions(
            every=query.tags, some=query.tags_any, not_every=query.not_tags, none=query.not_tags_any
        )
    columns: dict[str, tuple[Any, str | None]] = {
        "flavor": (ServerRow.flavor_id, query.flavor),
        "image": (ServerRow.image_id, query.image),
        "uuid": (ServerRow.id, query.uuid),
        "key_name": (ServerRow.key_name, query.key_name),
        "reservation_id": (ServerRow.reservation_id, query.reservation_id),
        "vm_state": (ServerRow.vm_state, query.vm_state),
        "task_state": (ServerRow.task_state, query.task_state),
    }
    if caller.is_admin:
        columns |= {"host": (ServerRow.host, query.host or query.node), "user_id": (ServerRow.user_id, query.user_id)}
    found += [column == value for column, value in columns.values() if value is not None]
    return found


def is_true(value: str | None, field: str) -> bool:
    """A parameter that says yes or no; one without a value says yes, as ``?all_tenants`` does."""
    match value if value is None else value.lower():
        case None | "0" | "f" | "false" | "n" | "no" | "off":
            return False
        case "" | "1" | "t" | "true" | "y" | "yes" | "on":
            return True
    raise BadRequest("Invalid value: it must be a boolean", field=f"query.{field}")


def _of_project(query: ServerQuery, caller: Caller) -> ColumnElement[bool]:
    if not is_true(query.all_tenants, "all_tenants"):
        return ServerRow.project_id == caller.project_id
    if not caller.is_admin:
        raise Forbidden("Policy doesn't allow os_compute_api:servers:index:get_all_tenants to be performed.")
    project = query.project_id or query.tenant_id
    return true() if project is None else ServerRow.project_id == project


def _of_time(query: ServerQuery, caller: Caller) -> ColumnElement[bool]:
    """Deleted servers are told to those who ask what changed, and to administrators who ask for them."""
    if caller.is_admin and is_true(query.deleted, "deleted"):
        return ServerRow.deleted_at.is_not(None)
    if query.changes_since is None:
        return ServerRow.deleted_at.is_(None)
    try:
        since = datetime.fromisoformat(query.changes_since)
        if since.tzinfo is None:
            since = since.replace(tzinfo=UTC)
        return ServerRow.updated_at >= since.astimezone(UTC)
    except (ValueError, OverflowError):
        raise BadRequest("Invalid changes-since value", remedy="a time such as 2026-08-01T12:00:00Z") from None


def _of_status(text: str, version: Microversion) -> ColumnElement[bool]:
    wanted = text.upper()
    if wanted in FOREIGN_STATUSES:
        return false()
    if wanted not in STATUSES:
        if version >= _BAD_STATUS_IS_REFUSED:
            raise BadRequest(f"Invalid status value: {text}", remedy=f"one of {', '.join(STATUSES)}")
        return false()
    vm, tasks = STATUSES[wanted]
    is_vm = ServerRow.vm_state == vm
    if tasks is None:
        return is_vm
    named = [task for task in tasks if task is not None]
    of_task = ServerRow.task_state.in_(named)
    return and_(is_vm, or_(of_task, ServerRow.task_state.is_(None)) if None in tasks else of_task)


_PIECE: Final = re.compile(r"\\(?P<escaped>[^A-Za-z0-9])|(?P<any>\.\*)|(?P<one>\.)|(?P<plain>[^\\.*+?()\[\]{}|^$])")
_LIKE_SPECIAL: Final = re.compile(r"[/%_]")


def _named(pattern: str) -> ColumnElement[bool]:
    """The compute API's filter by name is a regular expression; here a text, anchored or not, with . and .* in it.

    Any other would be evaluated by the database, in a time that its writer chooses. A dot stands for any character, as
    it does there: clients send a name with dots as it is, and look for the right one in the answer. It is blind to the
    case of ASCII's letters, and to no other: each database has its own mind of theirs.
    """
    begins, ends = pattern.startswith("^"), pattern.endswith("$") and not pattern.endswith("\\$")
    pieces = _pieces(pattern[1 if begins else 0 : -1 if ends else None])
    # LIKE is blind to case on SQLite; an exact name must not be.
    if begins and ends and not any(piece["any"] or piece["one"] for piece in pieces):
        return ServerRow.name == "".join(piece["escaped"] or piece["plain"] for piece in pieces)
    like = f"{'' if begins else '%'}{''.join(map(_like, pieces))}{'' if ends else '%'}"
    return lowered(ServerRow.name).like(folded(like), escape="/")


def _pieces(pattern: str) -> list[re.Match[str]]:
    pieces, at = [], 0
    while at < len(pattern):
        piece = _PIECE.match(pattern, at)
        if piece is None:
            raise BadRequest(
                "this regular expression is not supported",
                field="query.name",
                remedy="a text, with ^, $, . and .* at most",
            )
        pieces.append(piece)
        at = piece.end()
    return pieces


def _like(piece: re.Match[str]) -> str:
    if piece["any"]:
        return "%"
    return "_" if piece["one"] else _LIKE_SPECIAL.sub(r"/\g<0>", piece["escaped"] or piece["plain"])
