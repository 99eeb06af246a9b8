"""One bounded HTTP exchange with an OpenStack service, and what can go wrong in it."""

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from time import monotonic
from typing import Annotated, Any, Protocol, TypeAlias, TypeVar

import aiohttp
from pydantic import BaseModel, FailFast, ValidationError

from sev_agent.errors import SevAgentError, Unavailable

MAX_BODY = 16 * 1024 * 1024
"""Bytes of an answer that is read whole. Placement's largest, a thousand allocations, is a hundredth of it."""

_BLOCK = 64 * 1024
_EXCERPT = 300

_SCHEMES = ("http://", "https://")

M = TypeVar("M", bound=BaseModel)
K = TypeVar("K")
V = TypeVar("V")

ListOf: TypeAlias = Annotated[list[V], FailFast()]
DictOf: TypeAlias = Annotated[dict[K, V], FailFast()]
"""What an answer has many of. It is left at its first fault: to note each of a million would take gigabytes."""


class ServiceUnavailable(Unavailable):
    """An OpenStack service cannot be reached, fails, or does not answer in time."""

    code = "openstack.unavailable"

    def __init__(self, message: str, *, service: str, url: str, remedy: str | None = None) -> None:
        super().__init__(
            f"{service} at {url} {message}",
            remedy=remedy or f"check that {service} runs and that this host reaches it; then ask again",
        )
        self.service = service
        self.url = url


class BadAnswer(ServiceUnavailable):
    """An OpenStack service answered with something that its API does not allow."""

    code = "openstack.bad_answer"


class RequestRefused(SevAgentError):
    """An OpenStack service understood the request and will not do it."""

    code = "openstack.refused"

    def __init__(self, message: str, *, service: str, status: int, remedy: str | None = None) -> None:
        super().__init__(message, remedy=remedy)
        self.service = service
        self.status = status


class Forbidden(RequestRefused):
    """The authenticated user lacks a role that the request needs."""

    code = "openstack.forbidden"


class RequestObserver(Protocol):
    """Told of every exchange: status 0 when no answer came; the time is until the answer's headers, in seconds."""

    def __call__(self, service: str, method: str, status: int, seconds: float) -> None: ...


def ignore_request(service: str, method: str, status: int, seconds: float) -> None:
    """A ``RequestObserver`` that counts nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """An answer, read whole."""

    service: str
    url: str
    status: int
    headers: Mapping[str, str]
    body: bytes

    def parse(self, model: type[M]) -> M:
        """The body as ``model``. Raises ``BadAnswer`` that names the path in the document."""
        try:
            return model.model_validate_json(self.body)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            path = ".".join(str(part) for part in first["loc"])[:_EXCERPT] or "document"
            raise self.bad(f"answered {self.status} with a body that cannot be used: {path}: {first['msg']}") from None

    def bad(self, message: str) -> BadAnswer:
        return BadAnswer(message, service=self.service, url=self.url)

    @property
    def excerpt(self) -> str:
        """The beginning of the body on one line, for messages."""
        return " ".join(self.body[:_EXCERPT].decode(errors="replace").split())


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """How to talk to one service: whom to name in errors, and who counts."""

    session: aiohttp.ClientSession
    service: str
    on_request: RequestObserver = ignore_request

    @asynccontextmanager
    async def open(
        self, method: str, url: str, *, headers: Mapping[str, str], limits: aiohttp.ClientTimeout, **arguments: Any
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send one request and yield its answer with the body unread; see ``reading``.

        Redirects are not followed: they would carry the token to whoever is named in them.
        Raises ``ServiceUnavailable`` when no answer comes within ``limits``, which also hold for reading the body.
        """
        started = monotonic()
        status = 0
        if not url.startswith(_SCHEMES):
            raise ServiceUnavailable("cannot be talked to: this is no address of HTTP", service=self.service, url=url)
        try:
            with self.reading(url):
                response = await self.session.request(
                    method, url, headers=headers, timeout=limits, allow_redirects=False, **arguments
                )
            status = response.status
        finally:
            self.on_request(self.service, method, status, monotonic() - started)
        async with response:
            yield response

    @contextmanager
    def reading(self, url: str) -> Iterator[None]:
        """Turn what goes wrong with the connection into ``ServiceUnavailable``.

        Put around single reads only: the errors of whoever consumes the body, a full disk among them, are not ours.
        """
        started = monotonic()
        try:
            yield
        except TimeoutError as error:
            message = f"did not answer in time (waited {monotonic() - started:.1f} s)"
            raise ServiceUnavailable(message, service=self.service, url=url) from error
        except (aiohttp.ClientError, OSError, UnicodeError) as error:
            # The last is Python's for a host's name with an empty label, or one that is too long.
            message = f"cannot be talked to: {error or type(error).__name__}"
            raise ServiceUnavailable(message, service=self.service, url=url) from error

    async def read(self, response: aiohttp.ClientResponse, *, limit: int = MAX_BODY) -> Response:
        """The whole body. Raises ``BadAnswer`` when it has more than ``limit`` bytes, counted after decompression."""
        url = str(response.url)
        body = bytearray()
        with self.reading(url):
            async for block in response.content.iter_chunked(_BLOCK):
                body += block
                if len(body) > limit:
                    raise BadAnswer(f"answered with more than {limit} bytes", service=self.service, url=url)
        return Response(
            service=self.service, url=url, status=response.status, headers=response.headers.copy(), body=bytes(body)
        )
