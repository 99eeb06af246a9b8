"""Tokens of others: what Keystone says of them, asked with the service's own credentials and believed for a while."""

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from time import monotonic
from typing import Protocol

import aiohttp
from pydantic import AwareDatetime, BaseModel, Field

from sev_agent.config import AuthSection, ServiceSection, TokensSection
from sev_agent.errors import SevAgentError, Unavailable
from sev_agent.openstack.client import ServiceClient
from sev_agent.openstack.exchange import ListOf, RequestObserver, ignore_request
from sev_agent.openstack.identity import AuthenticationFailed, Identity
from sev_agent.uninterrupted import raise_if_cancelled

_SUBJECT_HEADER = "X-Subject-Token"
_MAX_TOKEN = 8192
"""Characters; Keystone's own tokens have about 200."""
_REFUSED_SECONDS = 5.0
"""How long a token that Keystone does not know is refused without asking again."""
_IDLE_SECONDS = 30.0
_AWAY_SECONDS = 1.0


class InvalidToken(SevAgentError):
    """Keystone does not know the token: it is wrong, expired or revoked."""

    code = "keystone.invalid_token"


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenFacts:
    """Whose a token is. ``project_id`` is ``None`` where it is not scoped to a project."""

    user_id: str
    project_id: str | None
    roles: tuple[str, ...]


class Tokens(Protocol):
    """Tells whose a token is."""

    async def validate(self, token: str) -> TokenFacts:
        """Raises ``InvalidToken``, ``Unavailable``."""


class _Named(BaseModel):
    id: str
    name: str = ""


class _Token(BaseModel):
    expires_at: AwareDatetime
    user: _Named
    project: _Named | None = None
    roles: ListOf[_Named] = Field(default_factory=list)


class _Answer(BaseModel):
    token: _Token


@dataclass(frozen=True, slots=True)
class _Known:
    """``facts`` is ``None`` for a token that was refused. ``until`` is of the monotonic clock."""

    facts: TokenFacts | None
    until: float


class KeystoneTokens:
    """Asks Keystone, once for each token at a time, and remembers the answer within ``settings``.

    ``on_reached`` hears after each question whether Keystone answered, and why not.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        identity: Identity,
        auth: AuthSection,
        settings: TokensSection,
        *,
        on_request: RequestObserver = ignore_request,
        on_reached: Callable[[str | None], None] | None = None,
    ) -> None:
        endpoint = (auth.auth_url or "").rstrip("/").removesuffix("/v3")
        self._client = ServiceClient(
            session,
            identity,
            name="keystone",
            service_type="identity",
            settings=ServiceSection(endpoint=endpoint, timeout=auth.timeout),
            on_request=on_request,
        )
        self._identity = identity
        self._settings = settings
        self._on_reached = on_reached
        # By digest: what is remembered must not be of use to whoever sees the process's memory in a core.
        self._known: OrderedDict[bytes, _Known] = OrderedDict()
        self._asking: dict[bytes, asyncio.Task[TokenFacts | None]] = {}

    async def validate(self, token: str) -> TokenFacts:
        if len(token) > _MAX_TOKEN or not token.isascii() or not token.isprintable():
            raise InvalidToken("this is no token of Keystone's")
        key = hashlib.sha256(token.encode()).digest()
        known = self._known.get(key)
        if known is not None and monotonic() < known.until:
            self._known.move_to_end(key)
            return _accepted(known.facts)
        task = self._asking.get(key)
        if task is None:
            task = asyncio.create_task(self._ask(key, token), name="keystone-validate")
            self._asking[key] = task
            task.add_done_callback(lambda _: self._asking.pop(key, None))
        # Shielded: the others who wait for the same answer must not lose it with a client that goes away.
        return _accepted(await asyncio.shield(task))

    async def watch(self) -> None:
        """Ask about the service's own token now and then, until cancelled.

        So ``on_reached`` hears of Keystone before anyone brings a token: to a service that is not ready, nobody does.
        """
        while True:
            raise_if_cancelled()
            try:
                token = await self._identity.token() or ""
                await self._ask(hashlib.sha256(token.encode()).digest(), token)
            except SevAgentError as error:
                self._reached(error.message)
                await asyncio.sleep(_AWAY_SECONDS)
            else:
                await asyncio.sleep(_IDLE_SECONDS)

    async def _ask(self, key: bytes, token: str) -> TokenFacts | None:
        try:
            response = await self._client.request(
                "GET",
                "/v3/auth/tokens",
                params={"nocatalog": ""},
                headers={_SUBJECT_HEADER: token},
                accepted={200, 404},
            )
            answer = response.parse(_Answer).token if response.status == 200 else None
        except Unavailable as error:
            self._reached(error.message)
            raise
        except AuthenticationFailed as error:
            self._reached(error.message)
            raise
        self._reached(None)
        if answer is None:
            self._remember(key, None, _REFUSED_SECONDS)
            return None
        facts = TokenFacts(
            user_id=answer.user.id,
            project_id=answer.project.id if answer.project else None,
            roles=tuple(role.name for role in answer.roles),
        )
        life = (answer.expires_at - datetime.now(UTC)).total_seconds()
        self._remember(key, facts, min(self._settings.cache_seconds, max(life, 0.0)))
        return facts

    def _remember(self, key: bytes, facts: TokenFacts | None, seconds: float) -> None:
        self._known[key] = _Known(facts, monotonic() + seconds)
        self._known.move_to_end(key)
        while len(self._known) > self._settings.cache_size:
            self._known.popitem(last=False)

    def _reached(self, reason: str | None) -> None:
        if self._on_reached is not None:
            self._on_reached(reason)


def _accepted(facts: TokenFacts | None) -> TokenFacts:
    if facts is None:
        raise InvalidToken("Keystone does not know this token")
    return facts
