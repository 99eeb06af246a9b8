"""Requests to one OpenStack service: authenticated, bounded in time and size, counted."""

import re
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any

import aiohttp

from sev_agent.config import ServiceSection
from sev_agent.openstack.exchange import (
    MAX_BODY,
    BadAnswer,
    Exchange,
    Forbidden,
    RequestObserver,
    RequestRefused,
    Response,
    ServiceUnavailable,
    ignore_request,
)
from sev_agent.openstack.identity import AuthenticationFailed, Identity

Params = Mapping[str, str]

global_request_id: ContextVar[str | None] = ContextVar("global_request_id", default=None)
"""The request on whose behalf this task works, as OpenStack writes it: ``req-`` and a UUID. Sent to every service."""

_REQUEST_ID_HEADER = "X-Openstack-Request-Id"
# oslo.middleware's own rule; a service ignores any other form.
_REQUEST_ID = re.compile(r"req-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_TOKEN_HEADER = "X-Auth-Token"  # noqa: S105 - the header's name
# Catalogs and operators write the address of some services with a version, and of others without.
_VERSION = re.compile(r"/v\d+(\.\d+)?/*$")


class ServiceClient:
    """One service, found by its configured endpoint or, without one, by ``identity``'s catalog.

    ``headers`` go with every request. Times: ``settings.timeout`` bounds one whole exchange, in seconds.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        identity: Identity,
        *,
        name: str,
        service_type: str,
        settings: ServiceSection,
        headers: Mapping[str, str] | None = None,
        on_request: RequestObserver = ignore_request,
        max_body: int = MAX_BODY,
    ) -> None:
        self.name = name
        self._identity = identity
        self._service_type = service_type
        self._settings = settings
        self._headers = dict(headers or {})
        self._max_body = max_body
        self._exchange = Exchange(session=session, service=name, on_request=on_request)

    async def request(
        self,
        method: str,
        path: str,
        *,
        accepted: Collection[int],
        json: Any = None,
        params: Params | None = None,
        headers: Mapping[str, str] | None = None,
        request_id: str | None = None,
    ) -> Response:
        """Exchange one request for an answer whose status is in ``accepted``.

        Raises ``ServiceUnavailable`` (no connection, no answer in time, 5xx), ``BadAnswer``, ``RequestRefused``
        (another 4xx), ``Forbidden``, and what the identity raises.
        """
        opened = self.open(
            method,
            path,
            limits=aiohttp.ClientTimeout(total=self._settings.timeout),
            accepted=accepted,
            headers=headers,
            request_id=request_id,
            body=lambda: {"json": json, "params": params},
        )
        async with opened as answer:
            return await self.read(answer)

    @asynccontextmanager
    async def open(
        self,
        method: str,
        path: str,
        *,
        limits: aiohttp.ClientTimeout,
        accepted: Collection[int],
        headers: Mapping[str, str] | None = None,
        request_id: str | None = None,
        body: Callable[[], Mapping[str, Any]] = dict,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """As ``request``, with the answer's body unread. ``body`` makes aiohttp's arguments anew for each attempt.

        A token that is refused is renewed, once: Keystone may have revoked it, or lost its keys.
        """
        url = await self._url(path)
        renewed = False
        while True:
            token = await self._identity.token()
            sent = self._request_headers(token, headers, request_id)
            async with self._exchange.open(method, url, headers=sent, limits=limits, **body()) as answer:
                if answer.status == 401 and token is not None and not renewed:
                    self._identity.invalidate(token)
                    renewed = True
                    continue
                if answer.status not in accepted:
                    response = await self.read(answer)
                    raise _failure(method, response) if response.status != 401 else _unauthorized(response, token)
                yield answer
                return

    async def read(self, answer: aiohttp.ClientResponse) -> Response:
        """The whole of an answer that was opened."""
        return await self._exchange.read(answer, limit=self._max_body)

    async def chunks(self, answer: aiohttp.ClientResponse, size: int) -> AsyncIterator[bytes]:
        """The body of an answer that was opened, in pieces of ``size`` bytes; the last may be shorter."""
        url = str(answer.url)
        gathered = bytearray()
        while True:
            with self._exchange.reading(url):
                block = await answer.content.read(size - len(gathered))
            gathered += block
            if gathered and (not block or len(gathered) == size):
                yield bytes(gathered)
                gathered.clear()
            if not block:
                return

    def bad(self, answer: aiohttp.ClientResponse, message: str) -> BadAnswer:
        return BadAnswer(message, service=self.name, url=str(answer.url))

    async def _url(self, path: str) -> str:
        endpoint = self._settings.endpoint or await self._identity.endpoint(self._service_type)
        return f"{_VERSION.sub('', endpoint.rstrip('/'))}{path}"

    def _request_headers(
        self, token: str | None, headers: Mapping[str, str] | None, request_id: str | None
    ) -> Mapping[str, str]:
        merged = {"Accept": "application/json", **self._headers, **(headers or {})}
        if token is not None:
            merged[_TOKEN_HEADER] = token
        request_id = request_id or global_request_id.get()
        if request_id is not None and _REQUEST_ID.fullmatch(request_id):
            merged[_REQUEST_ID_HEADER] = request_id
        return merged


def _unauthorized(response: Response, token: str | None) -> AuthenticationFailed:
    service = response.service
    if token is None:
        return AuthenticationFailed(
            f"{service} at {response.url} wants a token, and there is no Keystone to have one from",
            field="auth.type",
            remedy="set it to 'password', with Keystone's address and a user",
        )
    return AuthenticationFailed(
        f"{service} at {response.url} does not accept a token that Keystone has just issued",
        remedy=f"check the section keystone_authtoken of {service}'s own configuration",
    )


def _failure(method: str, response: Response) -> Exception:
    service, what = response.service, f"{method} {response.url}"
    match response.status:
        case 403:
            return Forbidden(
                f"{service} does not permit {what}: {response.excerpt}",
                service=service,
                status=403,
                remedy="give the user of the section auth the service or admin role in its project",
            )
        case 408 | 429 | 500 | 502 | 503 | 504 as status:
            return ServiceUnavailable(
                f"answered {status} to {method}: {response.excerpt}", service=service, url=response.url
            )
        case status if 400 <= status < 500:
            return RequestRefused(
                f"{service} refused {what}: {status} {response.excerpt}", service=service, status=status
            )
        case status:
            return response.bad(f"answered {method} with the unexpected status {status}: {response.excerpt}")
