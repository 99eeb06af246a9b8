"""The routes of key pairs. A pair is never generated here: who generates it would know the private key."""

from collections.abc import Iterable
from datetime import datetime
from typing import Annotated, Any, Final, Literal

from pydantic import Field, StringConstraints, model_validator

from sev_agent.api.caller import Role
from sev_agent.api.faults import Forbidden
from sev_agent.api.keypairs import Keypairs
from sev_agent.api.microversion import Microversion
from sev_agent.api.paging import next_links
from sev_agent.api.routes import Answer, Body, Call, Query, Route
from sev_agent.api.tables import KeypairRow

_PATH: Final = "/os-keypairs"
TYPES: Final = Microversion(2, 2)
"""From here on answers tell the key's type, and creation and deletion have statuses of their own."""
PAGES: Final = Microversion(2, 35)

KeypairName = Annotated[
    str,
    StringConstraints(min_length=1, max_length=255, pattern=r"^[A-Za-z0-9@._-]([A-Za-z0-9 @._-]*[A-Za-z0-9@._-])?$"),
]
UserId = Annotated[str, Field(min_length=1, max_length=255)]


class NewKeypair(Body):
    """``user_id``, of somebody else, is for administrators."""

    name: KeypairName
    public_key: Annotated[str, Field(max_length=65535)]
    type: Literal["ssh"] = "ssh"
    user_id: UserId | None = None

    @model_validator(mode="before")
    @classmethod
    def _has_a_key(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("public_key") is None:
            raise ValueError(
                "public_key is required: this service generates no keys, so that nobody but you has the private one;"
                " generate one with ssh-keygen, and import its public half"
            )
        return value


class CreateKeypair(Body):
    keypair: NewKeypair


class OwnerQuery(Query):
    """``user_id``, of somebody else, is for administrators."""

    user_id: UserId | None = None


class KeypairQuery(OwnerQuery):
    limit: Annotated[int, Field(ge=0)] | None = None
    marker: Annotated[str, Field(max_length=255)] | None = None


class KeypairRoutes:
    """``max_limit`` is the most that a page has."""

    def __init__(self, keypairs: Keypairs, *, max_limit: int) -> None:
        self._keypairs = keypairs
        self._max_limit = max_limit

    def routes(self) -> Iterable[Route]:
        one = f"{_PATH}/{{keypair_name}}"
        return (
            Route("GET", _PATH, "listKeypairs", self._list, query=KeypairQuery),
            Route(
                "POST",
                _PATH,
                "createKeypair",
                self._create,
                role=Role.MEMBER,
                body=CreateKeypair,
                status=201,
                other_statuses=(200,),
            ),
            Route("GET", one, "showKeypair", self._show, query=OwnerQuery),
            Route(
                "DELETE",
                one,
                "deleteKeypair",
                self._delete,
                role=Role.MEMBER,
                query=OwnerQuery,
                status=204,
                other_statuses=(202,),
            ),
        )

    async def _list(self, call: Call) -> dict[str, Any]:
        """List the key pairs of a user."""
        query = call.query_as(KeypairQuery)
        if call.version < PAGES:
            query = KeypairQuery(user_id=query.user_id)
        most = self._max_limit if query.limit is None else min(query.limit, self._max_limit)
        found = await self._keypairs.list(_owner(call, query.user_id), most=most, marker=query.marker)
        page: dict[str, Any] = {"keypairs": [{"keypair": _brief(row, call)} for row in found]}
        if found and len(found) == most and call.version >= PAGES:
            page["keypairs_links"] = next_links(call.base, _PATH, query, found[-1].name)
        return page

    async def _create(self, call: Call) -> Answer:
        """Import a public key."""
        asked = call.body_as(CreateKeypair).keypair
        made = await self._keypairs.add(_owner(call, asked.user_id), asked.name, asked.public_key)
        return Answer(
            body={"keypair": {**_brief(made, call), "user_id": made.user_id}},
            status=None if call.version >= TYPES else 200,
        )

    async def _show(self, call: Call) -> dict[str, Any]:
        """Show a key pair."""
        owner = _owner(call, call.query_as(OwnerQuery).user_id)
        row = await self._keypairs.get(owner, call.parameters["keypair_name"])
        more = {
            "user_id": row.user_id,
            "deleted": False,
            "created_at": _written(row.created_at),
            "updated_at": None,
            "deleted_at": None,
        }
        return {"keypair": {**_brief(row, call), **more}}

    async def _delete(self, call: Call) -> Answer:
        """Delete a key pair."""
        owner = _owner(call, call.query_as(OwnerQuery).user_id)
        await self._keypairs.delete(owner, call.parameters["keypair_name"])
        return Answer(status=None if call.version >= TYPES else 202)


def _brief(row: KeypairRow, call: Call) -> dict[str, Any]:
    view = {"name": row.name, "public_key": row.public_key, "fingerprint": row.fingerprint}
    return {**view, "type": row.type} if call.version >= TYPES else view


def _owner(call: Call, user_id: str | None) -> str:
    """Whose key pairs are meant. Raises ``Forbidden``."""
    if user_id is not None and user_id != call.caller.user_id and not call.caller.is_admin:
        raise Forbidden("the key pairs of another user are for administrators", field="user_id")
    return user_id or call.caller.user_id


def _written(moment: datetime) -> str:
    return moment.replace(tzinfo=None, microsecond=0).isoformat()
