"""Who we are to OpenStack's services, and where they are: Keystone's token and catalog, or neither."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from time import monotonic
from typing import Any, Protocol

import aiohttp
import structlog
from pydantic import AwareDatetime, BaseModel, Field

from sev_agent.config import AuthSection, ConfigurationError
from sev_agent.errors import SevAgentError, Unavailable
from sev_agent.openstack.exchange import (
    Exchange,
    ListOf,
    RequestObserver,
    Response,
    ServiceUnavailable,
    ignore_request,
)

_KEYSTONE = "keystone"
_TOKEN_HEADER = "X-Subject-Token"  # noqa: S105 - the header's name
_MARGIN = 300.0
"""Seconds before its end that a token is renewed; a tenth of its life where that is shorter."""
_RETRY_INTERVAL = 10.0
"""Seconds between attempts to renew a token that is still good, and to find a service that the catalog lacks."""

log = structlog.get_logger(__name__)


class AuthenticationFailed(SevAgentError):
    """Keystone does not accept the user, or a service does not accept Keystone's fresh token."""

    code = "keystone.unauthorized"


class EndpointMissing(SevAgentError):
    """Nobody says where a service is."""

    code = "keystone.no_endpoint"
    retryable = True


class Identity(Protocol):
    """A token for requests, and the addresses of services."""

    async def token(self) -> str | None:
        """A token that is good for now; ``None`` where the services want none."""

    def invalidate(self, token: str) -> None:
        """Forget ``token``, which a service refused; a newer one is kept."""

    async def endpoint(self, service_type: str) -> str:
        """Base address of the service of this catalog type, without a slash at its end."""


class NoIdentity:
    """No token and no catalog: for services without authentication, on loopback only."""

    async def token(self) -> str | None:
        return None

    def invalidate(self, token: str) -> None:
        pass

    async def endpoint(self, service_type: str) -> str:
        raise EndpointMissing(
            f"without Keystone there is no catalog to find the {service_type} service in",
            remedy="set the endpoint in the service's section, or auth.type to 'password'",
        )


class BorrowedIdentity:
    """Somebody else's token, and the addresses that ``lender`` knows: for questions on their behalf."""

    def __init__(self, token: str, lender: Identity) -> None:
        self._token = token
        self._lender = lender

    async def token(self) -> str:
        return self._token

    def invalidate(self, token: str) -> None:
        """Nothing to forget: only its owner can have another one."""

    async def endpoint(self, service_type: str) -> str:
        return await self._lender.endpoint(service_type)


class _Endpoint(BaseModel):
    interface: str
    url: str
    region_id: str | None = None
    region: str | None = None


class _Service(BaseModel):
    type: str
    endpoints: ListOf[_Endpoint] = Field(default_factory=list)


class _Token(BaseModel):
    issued_at: AwareDatetime
    expires_at: AwareDatetime
    catalog: ListOf[_Service] = Field(default_factory=list)


class _TokenAnswer(BaseModel):
    token: _Token


@dataclass(frozen=True, slots=True, kw_only=True)
class _Session:
    """One token with its catalog. Times are of the monotonic clock."""

    token: str
    catalog: tuple[_Service, ...]
    since: float
    renew: float
    end: float


class KeystoneIdentity:
    """A user's token from Keystone (v3, password), renewed before its end; one request at a time.

    The life of a token is the difference of Keystone's own two times, counted here on the monotonic clock, so neither
    a wrong clock nor one that jumps matters. While Keystone is away, a token that is still good goes on being used.
    Raises ``AuthenticationFailed``, ``EndpointMissing``, ``ServiceUnavailable``.
    """

    def __init__(
        self, session: aiohttp.ClientSession, auth: AuthSection, *, on_request: RequestObserver = ignore_request
    ) -> None:
        if auth.auth_url is None:
            raise ConfigurationError("Keystone's address is not known", field="auth.auth_url", remedy="set it")
        self._auth = auth
        self._url = f"{auth.auth_url.rstrip('/').removesuffix('/v3')}/v3/auth/tokens"
        self._exchange = Exchange(session=session, service=_KEYSTONE, on_request=on_request)
        self._current: _Session | None = None
        self._lock = asyncio.Lock()
        self._finished = 0
        self._failure: SevAgentError | None = None
        self._not_before = 0.0

    async def token(self) -> str:
        return (await self._session()).token

    def invalidate(self, token: str) -> None:
        if self._current is not None and self._current.token == token:
            self._current = None

    async def check(self) -> None:
        """Have Keystone look at the token in use; one that it knows no more is renewed. Raises as the class."""
        session = await self._session()
        headers = {"X-Auth-Token": session.token, _TOKEN_HEADER: session.token}
        limits = aiohttp.ClientTimeout(total=self._auth.timeout)
        async with self._exchange.open("GET", self._url, headers=headers, limits=limits) as opened:
            response = await self._exchange.read(opened)
        match response.status:
            case 200:
                response.parse(_TokenAnswer)
            case 401 | 404:
                self.invalidate(session.token)
                await self._session()
            case _:
                raise self._refusal(response)

    async def endpoint(self, service_type: str) -> str:
        session = await self._session()
        try:
            return self._find(session, service_type)
        except EndpointMissing:
            # A service may be registered after our token was issued, and the catalog comes with the token only.
            if monotonic() - session.since < _RETRY_INTERVAL:
                raise
            self.invalidate(session.token)
            return self._find(await self._session(), service_type)

    async def _session(self) -> _Session:
        if (current := self._usable()) is not None:
            return current
        finished = self._finished
        async with self._lock:
            if (current := self._usable()) is not None:
                return current
            if self._finished > finished and self._failure is not None:
                # The attempt that we waited for failed. Were each waiter to try again in turn, the last of a hundred
                # would wait for a hundred time limits.
                raise self._failure
            return await self._renew()

    def _usable(self) -> _Session | None:
        now = monotonic()
        current = self._current
        if current is None or now >= current.end:
            return None
        return current if now < max(current.renew, self._not_before) else None

    async def _renew(self) -> _Session:
        self._failure = None
        try:
            self._current = await self._authenticate()
        except Unavailable as error:
            if self._current is None or monotonic() >= self._current.end:
                self._failure = error
                raise
            self._not_before = monotonic() + _RETRY_INTERVAL
            log.warning("keystone.renewal.failed", error=str(error), token_seconds=self._current.end - monotonic())
        except SevAgentError as error:
            self._failure = error
            raise
        finally:
            self._finished += 1
        return self._current

    async def _authenticate(self) -> _Session:
        started = monotonic()
        limits = aiohttp.ClientTimeout(total=self._auth.timeout)
        async with self._exchange.open("POST", self._url, headers={}, limits=limits, json=self._request()) as opened:
            response = await self._exchange.read(opened)
        if response.status != 201:
            raise self._refusal(response)
        token = response.headers.get(_TOKEN_HEADER)
        if not token:
            raise response.bad(f"answered without the header {_TOKEN_HEADER}")
        answer = response.parse(_TokenAnswer).token
        life = _seconds(answer.issued_at, answer.expires_at)
        if life <= 0:
            raise response.bad("issued a token that ends before it begins")
        return _Session(
            token=token,
            catalog=tuple(answer.catalog),
            since=started,
            renew=started + life - min(_MARGIN, life / 10),
            end=started + life,
        )

    def _request(self) -> Mapping[str, Any]:
        auth = self._auth
        user = {
            "name": auth.username,
            "domain": _domain(auth.user_domain_id, auth.user_domain_name),
            "password": auth.password.get_secret_value(),
        }
        domain = _domain(auth.project_domain_id, auth.project_domain_name)
        project = {"name": auth.project_name, "domain": domain}
        return {
            "auth": {
                "identity": {"methods": ["password"], "password": {"user": user}},
                "scope": {"project": project},
            }
        }

    def _refusal(self, response: Response) -> SevAgentError:
        match response.status:
            case 401:
                auth = self._auth
                return AuthenticationFailed(
                    f"Keystone at {self._url} does not accept user {auth.username!r} of domain"
                    f" {auth.user_domain_name!r} for project {auth.project_name!r}",
                    field="auth.username",
                    remedy="check name, password, project and domains in the section auth",
                )
            case 429 | 500 | 502 | 503 | 504:
                message = f"answered {response.status}: {response.excerpt}"
                return ServiceUnavailable(message, service=_KEYSTONE, url=self._url)
            case status:
                return response.bad(f"answered {status} to a request about a token: {response.excerpt}")

    def _find(self, session: _Session, service_type: str) -> str:
        interface, region = self._auth.interface, self._auth.region_name
        found = {
            endpoint.region_id or endpoint.region or "": endpoint.url
            for service in session.catalog
            if service.type == service_type
            for endpoint in service.endpoints
            if endpoint.interface == interface and (region is None or region in {endpoint.region_id, endpoint.region})
        }
        match sorted(found):
            case [only]:
                return found[only].rstrip("/")
            case []:
                where = f" in region {region!r}" if region else ""
                raise EndpointMissing(
                    f"Keystone's catalog has no {interface} endpoint of a service of type {service_type!r}{where}",
                    remedy="register it, check auth.region_name and auth.interface, or set the service's own endpoint",
                )
            case regions:
                raise EndpointMissing(
                    f"Keystone's catalog has a {service_type!r} service in each of the regions {', '.join(regions)}",
                    field="auth.region_name",
                    remedy="set it to one of them",
                )


def _domain(domain_id: str | None, name: str) -> Mapping[str, str]:
    return {"name": name} if domain_id is None else {"id": domain_id}


def _seconds(start: datetime, end: datetime) -> float:
    return (end - start).total_seconds()


def identify(
    auth: AuthSection, session: aiohttp.ClientSession, *, on_request: RequestObserver = ignore_request
) -> Identity:
    """The identity that ``auth`` configures."""
    match auth.type:
        case "none":
            return NoIdentity()
        case "password":
            return KeystoneIdentity(session, auth, on_request=on_request)
