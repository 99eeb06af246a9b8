"""Who asks, and what each role may do."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from sev_agent.api.faults import BadRequest, Forbidden, Unauthorized
from sev_agent.openstack.tokens import InvalidToken, TokenFacts, Tokens

_TOKEN_HEADER = "X-Auth-Token"  # noqa: S105 - the header's name
_MAX_NAME = 255


class Role(StrEnum):
    """Keystone's roles that mean something here. Each contains those above it."""

    READER = "reader"
    MEMBER = "member"
    ADMIN = "admin"


_CONTAINED = {
    Role.READER: frozenset({Role.READER}),
    Role.MEMBER: frozenset({Role.READER, Role.MEMBER}),
    Role.ADMIN: frozenset(Role),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """A user in a project. ``token`` is theirs, for questions on their behalf."""

    user_id: str
    project_id: str
    roles: frozenset[Role]
    token: str | None = None

    @property
    def is_admin(self) -> bool:
        return Role.ADMIN in self.roles

    def require(self, role: Role) -> None:
        """Raises ``Forbidden``."""
        if role not in self.roles:
            raise Forbidden(
                f"this needs the role '{role}' in project {self.project_id}",
                remedy=f"ask an administrator: openstack role add --user ... --project ... {role}",
            )


class Authenticator(Protocol):
    """Tells who sent a request."""

    async def authenticate(self, headers: Mapping[str, str]) -> Caller:
        """Raises ``Unauthorized``, ``Forbidden``, ``Unavailable``."""


class KeystoneAuthenticator:
    """By the token in the request, which Keystone is asked about."""

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens

    async def authenticate(self, headers: Mapping[str, str]) -> Caller:
        token = headers.get(_TOKEN_HEADER)
        if not token:
            raise Unauthorized("The request you have made requires authentication.", remedy=f"send {_TOKEN_HEADER}")
        try:
            facts = await self._tokens.validate(token)
        except InvalidToken as error:
            raise Unauthorized(
                "The request you have made requires authentication.", remedy="the token is not valid (any more)"
            ) from error
        return _caller(facts, token)


class LoopbackAuthenticator:
    """Without Keystone, on loopback only: whoever reaches this machine's loopback is an administrator.

    As with Nova's ``noauth2``, the headers ``X-Project-Id``, ``X-User-Id`` and ``X-Roles`` say who to be taken for.
    """

    async def authenticate(self, headers: Mapping[str, str]) -> Caller:
        given = {name: headers.get(name, "local") for name in ("X-Project-Id", "X-User-Id")}
        for name, value in given.items():
            if not value or len(value) > _MAX_NAME or not value.isprintable():
                raise BadRequest("is no identifier", field=name)
        roles = (role.strip().lower() for role in headers.get("X-Roles", Role.ADMIN).split(","))
        return Caller(user_id=given["X-User-Id"], project_id=given["X-Project-Id"], roles=_roles(roles))


def _caller(facts: TokenFacts, token: str) -> Caller:
    if facts.project_id is None:
        raise Forbidden("the token is not scoped to a project", remedy="ask Keystone for a token of a project")
    roles = _roles(name.lower() for name in facts.roles)
    return Caller(user_id=facts.user_id, project_id=facts.project_id, roles=roles, token=token)


def _roles(names: Iterable[str]) -> frozenset[Role]:
    known = {role.value: role for role in Role}
    return frozenset[Role]().union(*(_CONTAINED[known[name]] for name in names if name in known))
