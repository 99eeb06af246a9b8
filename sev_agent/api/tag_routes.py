"""The routes of a server's tags, which microversion 2.26 brought."""

from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from sev_agent.api.caller import Role
from sev_agent.api.faults import BadRequest, ItemNotFound
from sev_agent.api.microversion import Microversion
from sev_agent.api.routes import Answer, Body, Call, Route
from sev_agent.api.server_bodies import MAX_TAGS, Tag
from sev_agent.api.servers import Servers
from sev_agent.api.tables import ServerRow

_SINCE = Microversion(2, 26)


class AllTags(Body):
    tags: Annotated[list[Tag], Field(max_length=MAX_TAGS)]


class TagRoutes:
    def __init__(self, servers: Servers) -> None:
        self._servers = servers
        self._tag: TypeAdapter[str] = TypeAdapter(Tag)

    def routes(self) -> Iterable[Route]:
        tags, one, member = "/servers/{server_id}/tags", "/servers/{server_id}/tags/{tag}", Role.MEMBER
        return (
            Route("GET", tags, "listTags", self._list, since=_SINCE),
            Route("PUT", tags, "replaceTags", self._replace, role=member, body=AllTags, since=_SINCE),
            Route("DELETE", tags, "deleteTags", self._clear, role=member, status=204, since=_SINCE),
            Route("GET", one, "checkTag", self._check, status=204, since=_SINCE),
            Route("PUT", one, "addTag", self._add, role=member, status=201, other_statuses=(204,), since=_SINCE),
            Route("DELETE", one, "deleteTag", self._remove, role=member, status=204, since=_SINCE),
        )

    async def _list(self, call: Call) -> dict[str, Any]:
        """List a server's tags."""
        return {"tags": (await self._get(call)).tags}

    async def _replace(self, call: Call) -> dict[str, Any]:
        """Set all of a server's tags."""
        tags = sorted(set(call.body_as(AllTags).tags))

        def change(row: ServerRow) -> None:
            row.tags = tags

        await self._servers.change(call.caller, call.parameters["server_id"], change)
        return {"tags": tags}

    async def _clear(self, call: Call) -> None:
        """Remove all of a server's tags."""

        def change(row: ServerRow) -> None:
            row.tags = []

        await self._servers.change(call.caller, call.parameters["server_id"], change)

    async def _check(self, call: Call) -> None:
        """Tell whether a server has a tag."""
        _known(await self._get(call), call.parameters["tag"])

    async def _add(self, call: Call) -> Answer:
        """Add one tag to a server."""
        try:
            tag = self._tag.validate_python(call.parameters["tag"])
        except ValidationError:
            raise BadRequest("is no tag: 1 to 60 characters without '/' and ','", field="tag") from None
        was_there = False

        def change(row: ServerRow) -> None:
            nonlocal was_there
            was_there = tag in row.tags
            if not was_there and len(row.tags) >= MAX_TAGS:
                raise BadRequest(f"The number of tags exceeded the per-server limit {MAX_TAGS}")
            row.tags = sorted({*row.tags, tag})

        await self._servers.change(call.caller, call.parameters["server_id"], change)
        where = f"{call.base}/servers/{call.parameters['server_id']}/tags/{tag}"
        return Answer(status=204) if was_there else Answer(headers={"Location": where})

    async def _remove(self, call: Call) -> None:
        """Remove one tag of a server."""
        tag = call.parameters["tag"]

        def change(row: ServerRow) -> None:
            _known(row, tag)
            row.tags = [each for each in row.tags if each != tag]

        await self._servers.change(call.caller, call.parameters["server_id"], change)

    async def _get(self, call: Call) -> ServerRow:
        return await self._servers.get(call.caller, call.parameters["server_id"])


def _known(row: ServerRow, tag: str) -> None:
    if tag not in row.tags:
        raise ItemNotFound(f"Server {row.id} has no tag '{tag}'")
