"""The routes of servers, their metadata and their actions."""

from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, RootModel

from sev_agent.api.body import parse
from sev_agent.api.caller import Role
from sev_agent.api.creation import Creation
from sev_agent.api.faults import BadRequest, ItemNotFound
from sev_agent.api.flavor_routes import number
from sev_agent.api.microversion import Microversion
from sev_agent.api.paging import next_links
from sev_agent.api.routes import Answer, Body, Call, Route
from sev_agent.api.server_actions import HARD_REBOOT, SOFT_REBOOT, START, STOP, PowerAction, ServerActions
from sev_agent.api.server_bodies import (
    DEFAULT_GROUP,
    MAX_METADATA,
    AllMetadata,
    CreateServer,
    OneMetadatum,
    ServerChange,
    UpdateServer,
)
from sev_agent.api.server_filters import FOR_ADMINS, SORTABLE, ServerQuery, conditions
from sev_agent.api.server_views import DESCRIPTION, brief, detail, links
from sev_agent.api.servers import Servers, merged
from sev_agent.api.tables import ServerRow

_NETWORKS_REQUIRED = Microversion(2, 37)
_TAGS_AT_CREATION = Microversion(2, 52)
_DEFAULT_ORDER = (("created_at", "desc"),)


class _Reboot(Body):
    type: Annotated[Literal["SOFT", "HARD"], BeforeValidator(lambda v: v.upper() if isinstance(v, str) else v)]


def _length(value: Any) -> Any:
    """-1 and none ask for all."""
    value = number(value)
    # No set: what is sent may have no hash.
    return None if value in (-1, "-1") else value


class _Console(Body):
    length: Annotated[Annotated[int, Field(ge=0, le=100_000)] | None, BeforeValidator(_length)] = None


def _describe_actions(schema: dict[str, Any]) -> None:
    arguments = {
        "os-start": {"type": "null"},
        "os-stop": {"type": "null"},
        "reboot": _Reboot.model_json_schema(),
        "os-getConsoleOutput": _Console.model_json_schema(),
    }
    schema.clear()
    schema["oneOf"] = [
        {"type": "object", "properties": {name: what}, "required": [name], "additionalProperties": False}
        for name, what in arguments.items()
    ]


class ServerAction(RootModel[Annotated[dict[str, Any], Field(min_length=1, max_length=1)]]):
    """One action by its name, with what it is told."""

    model_config = ConfigDict(json_schema_extra=_describe_actions)


class ServerRoutes:
    """``zone`` is the availability zone's name, ``max_limit`` the most that a page has."""

    def __init__(
        self, servers: Servers, creation: Creation, actions: ServerActions, *, zone: str, max_limit: int
    ) -> None:
        self._servers = servers
        self._creation = creation
        self._actions = actions
        self._zone = zone
        self._max_limit = max_limit

    def routes(self) -> Iterable[Route]:
        one, member = "/servers/{server_id}", Role.MEMBER
        metadata, datum = f"{one}/metadata", f"{one}/metadata/{{key}}"
        return (
            Route("POST", "/servers", "createServer", self._create, role=member, body=CreateServer, status=202),
            Route("GET", "/servers", "listServers", self._list, query=ServerQuery),
            Route("GET", "/servers/detail", "listServersDetail", self._detail, query=ServerQuery),
            Route("GET", one, "showServer", self._show),
            Route("PUT", one, "updateServer", self._update, role=member, body=UpdateServer),
            Route("DELETE", one, "deleteServer", self._delete, role=member, status=204),
            Route(
                "POST",
                f"{one}/action",
                "serverAction",
                self._action,
                role=member,
                body=ServerAction,
                status=202,
                other_statuses=(200,),
            ),
            Route("GET", metadata, "listMetadata", self._metadata),
            Route("POST", metadata, "updateMetadata", self._add_metadata, role=member, body=AllMetadata),
            Route("PUT", metadata, "replaceMetadata", self._replace_metadata, role=member, body=AllMetadata),
            Route("GET", datum, "showMetadatum", self._datum),
            Route("PUT", datum, "setMetadatum", self._set_datum, role=member, body=OneMetadatum),
            Route("DELETE", datum, "deleteMetadatum", self._delete_datum, role=member, status=204),
        )

    async def _create(self, call: Call) -> Answer:
        """Create one server, or several."""
        asked = call.body_as(CreateServer).server
        given = asked.model_fields_set
        if call.version >= _NETWORKS_REQUIRED and "networks" not in given:
            raise BadRequest("is required", field="server.networks", remedy="'auto', 'none', or a list of networks")
        if call.version < _NETWORKS_REQUIRED and isinstance(asked.networks, str) and "networks" in given:
            raise BadRequest(f"{asked.networks!r} needs microversion {_NETWORKS_REQUIRED}", field="server.networks")
        _only_since(call, DESCRIPTION, "description", given)
        _only_since(call, _TAGS_AT_CREATION, "tags", given)
        rows = await self._creation.create(call.caller, asked, call.request_id)
        first = rows[0]
        if asked.return_reservation_id:
            return Answer(body={"reservation_id": first.reservation_id})
        server = {
            "id": first.id,
            "links": links(first.id, call),
            "OS-DCF:diskConfig": asked.disk_config or "MANUAL",
            "security_groups": [{"name": DEFAULT_GROUP}],
        }
        return Answer(body={"server": server}, headers={"Location": f"{call.base}/servers/{first.id}"})

    async def _list(self, call: Call) -> dict[str, Any]:
        """List servers."""
        return await self._page(call, "/servers", brief)

    async def _detail(self, call: Call) -> dict[str, Any]:
        """List servers with details."""
        return await self._page(call, "/servers/detail", self._view)

    async def _page(self, call: Call, path: str, view: Callable[[ServerRow, Call], dict[str, Any]]) -> dict[str, Any]:
        query = call.query_as(ServerQuery)
        sortable = SORTABLE | FOR_ADMINS if call.caller.is_admin else SORTABLE
        most = query.page_size(self._max_limit)
        rows = await self._servers.page(
            call.caller,
            conditions(query, call.caller, call.version),
            query.order(sortable, _DEFAULT_ORDER),
            marker=query.marker,
            limit=most,
        )
        page: dict[str, Any] = {"servers": [view(row, call) for row in rows]}
        if rows and len(rows) == most:
            page["servers_links"] = next_links(call.base, path, query, rows[-1].id)
        return page

    async def _show(self, call: Call) -> dict[str, Any]:
        """Show a server."""
        return {"server": self._view(await self._servers.get(call.caller, _server_id(call)), call)}

    async def _update(self, call: Call) -> dict[str, Any]:
        """Rename a server, or describe it."""
        asked = call.body_as(UpdateServer).server
        _only_since(call, DESCRIPTION, "description", asked.model_fields_set)

        def change(row: ServerRow) -> None:
            _rename(row, asked)

        return {"server": self._view(await self._servers.change(call.caller, _server_id(call), change), call)}

    async def _delete(self, call: Call) -> None:
        """Delete a server."""
        await self._actions.delete(call.caller, _server_id(call), call.request_id)

    async def _action(self, call: Call) -> Answer:
        """Start, stop or reboot a server, or read its console."""
        ((name, argument),) = call.body_as(ServerAction).root.items()
        match name:
            case "os-start":
                return await self._power(call, START)
            case "os-stop":
                return await self._power(call, STOP)
            case "reboot":
                hard = parse(_Reboot, argument, "reboot").type == "HARD"
                return await self._power(call, HARD_REBOOT if hard else SOFT_REBOOT)
            case "os-getConsoleOutput":
                asked = parse(_Console, {} if argument is None else argument, name)
                # The hosts' schema knows no zero lines.
                output = "" if asked.length == 0 else await self._console(call, asked.length)
                return Answer(body={"output": output}, status=200)
        raise BadRequest(
            f"There is no such action: {name[:100]}", remedy="os-start, os-stop, reboot or os-getConsoleOutput"
        )

    async def _console(self, call: Call, length: int | None) -> str:
        return await self._actions.console(call.caller, _server_id(call), length)

    async def _power(self, call: Call, action: PowerAction) -> Answer:
        await self._actions.power(call.caller, _server_id(call), action, call.request_id)
        return Answer()

    async def _metadata(self, call: Call) -> dict[str, Any]:
        """List a server's metadata."""
        return {"metadata": (await self._servers.get(call.caller, _server_id(call))).properties}

    async def _add_metadata(self, call: Call) -> dict[str, Any]:
        """Set some of a server's metadata, and leave the others."""
        asked = call.body_as(AllMetadata).metadata
        return await self._change_metadata(call, lambda held: merged(held, asked, MAX_METADATA))

    async def _replace_metadata(self, call: Call) -> dict[str, Any]:
        """Set all of a server's metadata."""
        asked = call.body_as(AllMetadata).metadata
        return await self._change_metadata(call, lambda _: merged({}, asked, MAX_METADATA))

    async def _datum(self, call: Call) -> dict[str, Any]:
        """Show one item of a server's metadata."""
        key = call.parameters["key"]
        held = (await self._servers.get(call.caller, _server_id(call))).properties
        if key not in held:
            raise ItemNotFound("Metadata item was not found")
        return {"meta": {key: held[key]}}

    async def _set_datum(self, call: Call) -> dict[str, Any]:
        """Set one item of a server's metadata."""
        asked = call.body_as(OneMetadatum).meta
        if call.parameters["key"] not in asked:
            raise BadRequest("Request body and URI mismatch")
        await self._change_metadata(call, lambda held: merged(held, asked, MAX_METADATA))
        return {"meta": asked}

    async def _delete_datum(self, call: Call) -> None:
        """Remove one item of a server's metadata."""
        key = call.parameters["key"]

        def without(held: Mapping[str, str]) -> dict[str, str]:
            if key not in held:
                raise ItemNotFound("Metadata item was not found")
            return {name: value for name, value in held.items() if name != key}

        await self._change_metadata(call, without)

    async def _change_metadata(
        self, call: Call, change: Callable[[Mapping[str, str]], dict[str, str]]
    ) -> dict[str, Any]:
        def of_row(row: ServerRow) -> None:
            row.properties = change(row.properties)

        row = await self._servers.change(call.caller, _server_id(call), of_row)
        return {"metadata": row.properties}

    def _view(self, row: ServerRow, call: Call) -> dict[str, Any]:
        return detail(row, call, zone=self._zone)


def _server_id(call: Call) -> str:
    return call.parameters["server_id"]


def _rename(row: ServerRow, asked: ServerChange) -> None:
    if asked.name is not None:
        row.name = asked.name
    if "description" in asked.model_fields_set:
        row.description = asked.description


def _only_since(call: Call, version: Microversion, field: str, given: set[str]) -> None:
    if field in given and call.version < version:
        raise BadRequest(f"needs microversion {version}", field=f"server.{field}")
