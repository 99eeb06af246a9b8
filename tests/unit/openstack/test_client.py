import asyncio
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from pydantic import BaseModel

from sev_agent.config import ServiceSection
from sev_agent.openstack.client import ServiceClient, global_request_id
from sev_agent.openstack.exchange import BadAnswer, Forbidden, RequestRefused, Response, ServiceUnavailable
from sev_agent.openstack.identity import AuthenticationFailed, EndpointMissing, NoIdentity
from tests.unit.openstack.conftest import Handler, Serve
from tests.unit.openstack.raw_server import raw_server

REQUEST_ID = "req-0b7ee4ac-8d5d-4b28-8b1e-6e35a2b8f8d1"


class Tokens:
    """An identity that gives out t1, t2, ... and counts."""

    def __init__(self) -> None:
        self.number = 1
        self.invalidated: list[str] = []
        self.address = ""

    async def token(self) -> str | None:
        return f"t{self.number}"

    def invalidate(self, token: str) -> None:
        self.invalidated.append(token)
        self.number += 1

    async def endpoint(self, service_type: str) -> str:
        return f"{self.address}/{service_type}/v2.1/"


class Document(BaseModel):
    numbers: list[int]


def client(
    session: aiohttp.ClientSession, endpoint: str | None, identity: Any = None, timeout: float = 5, **arguments: Any
) -> ServiceClient:
    settings = ServiceSection(endpoint=endpoint, timeout=timeout)
    return ServiceClient(
        session, identity or NoIdentity(), name="things", service_type="thing", settings=settings, **arguments
    )


def answering(*statuses: int, body: str = "{}") -> tuple[Handler, list[web.Request]]:
    """A handler that answers with ``statuses`` in turn, the last for ever, and the requests that it saw."""
    seen: list[web.Request] = []

    async def handle(request: web.Request) -> web.Response:
        seen.append(request)
        status = statuses[min(len(seen), len(statuses)) - 1]
        return web.Response(status=status, text=body, content_type="application/json")

    return handle, seen


async def get(client: ServiceClient, **arguments: Any) -> Response:
    return await client.request("GET", "/x", accepted={200}, **arguments)


async def test_refused_token_is_renewed_once(session: aiohttp.ClientSession, serve: Serve) -> None:
    """A 401 invalidates the token that was sent, and the request is sent again with the next one."""
    handler, seen = answering(401, 200)
    identity = Tokens()
    response = await get(client(session, await serve(handler), identity))
    assert response.status == 200
    assert [request.headers["X-Auth-Token"] for request in seen] == ["t1", "t2"]
    assert identity.invalidated == ["t1"]


async def test_fresh_token_refused_is_an_authentication_failure(session: aiohttp.ClientSession, serve: Serve) -> None:
    """A service that refuses also the renewed token is asked twice, not for ever."""
    handler, seen = answering(401)
    things = client(session, await serve(handler), Tokens())
    with pytest.raises(AuthenticationFailed) as caught:
        async with asyncio.timeout(5):
            await get(things)
    assert len(seen) == 2
    assert not caught.value.retryable
    assert "things" in str(caught.value)


@pytest.mark.parametrize(
    ("status", "error", "retryable"),
    [
        (500, ServiceUnavailable, True),
        (503, ServiceUnavailable, True),
        (429, ServiceUnavailable, True),
        (403, Forbidden, False),
        (406, RequestRefused, False),
        (302, BadAnswer, True),
        (201, BadAnswer, True),
    ],
)
async def test_unaccepted_statuses(
    session: aiohttp.ClientSession, serve: Serve, status: int, error: type[Exception], *, retryable: bool
) -> None:
    """Each class of status is an error of its own that names the service, and says whether to try again."""
    handler, _ = answering(status, body='{"why": "because"}')
    with pytest.raises(error, match="things") as caught:
        await get(client(session, await serve(handler)))
    assert type(caught.value) is error
    assert getattr(caught.value, "retryable", None) is retryable
    assert "because" in str(caught.value)


async def test_redirect_is_not_followed(session: aiohttp.ClientSession, serve: Serve) -> None:
    """A redirect does not carry the token elsewhere."""
    handler, seen = answering(200)
    elsewhere = await serve(handler)

    async def redirect(_: web.Request) -> web.Response:
        return web.Response(status=302, headers={"Location": elsewhere})

    with pytest.raises(BadAnswer):
        await get(client(session, await serve(redirect), Tokens()))
    assert seen == []


async def test_hanging_server_is_unavailable_in_time(session: aiohttp.ClientSession) -> None:
    """A server that never answers costs the time limit, and the error names it and its address."""
    async with raw_server(b"", hang=True) as address:
        with pytest.raises(ServiceUnavailable, match="in time") as caught:
            await get(client(session, address, timeout=0.2))
    assert caught.value.service == "things"
    assert caught.value.url == f"{address}/x"
    assert caught.value.retryable


async def test_hang_in_the_body_is_unavailable_in_time(session: aiohttp.ClientSession) -> None:
    """The time limit holds for the body too."""
    async with raw_server(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{}", hang=True) as address:
        with pytest.raises(ServiceUnavailable, match="in time"):
            await get(client(session, address, timeout=0.2))


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"220 mail.example ESMTP\r\n",
        b"\x00" * 100,
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\nnope",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
async def test_broken_protocol_is_unavailable(session: aiohttp.ClientSession, answer: bytes) -> None:
    """Whatever is not HTTP, or not all of it, is an unavailable service and no foreign exception."""
    async with raw_server(answer) as address:
        with pytest.raises(ServiceUnavailable, match="things at"):
            await get(client(session, address))


async def test_nobody_listens(session: aiohttp.ClientSession) -> None:
    """A refused connection is an unavailable service."""
    async with raw_server(b"") as address:
        pass
    with pytest.raises(ServiceUnavailable, match="cannot be talked to"):
        await get(client(session, address))


async def test_huge_body_is_not_read_whole(session: aiohttp.ClientSession, serve: Serve) -> None:
    """An answer over the bound is refused after the bound."""
    sent = 0

    async def pour(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(4096):
            await response.write(b" " * 65536)
            sent += 65536
        return response

    with pytest.raises(BadAnswer, match="more than 100000 bytes"):
        await get(client(session, await serve(pour), max_body=100_000))
    assert sent < 64 * 1024 * 1024


async def test_compressed_bomb_is_counted_unpacked(session: aiohttp.ClientSession, serve: Serve) -> None:
    """The bound is on the bytes after decompression."""

    async def bomb(_: web.Request) -> web.Response:
        response = web.Response(body=b" " * 10_000_000)
        response.enable_compression(web.ContentCoding.gzip)
        return response

    with pytest.raises(BadAnswer, match="more than"):
        await get(client(session, await serve(bomb), max_body=100_000))


@pytest.mark.parametrize(
    ("body", "path"),
    [("<html>", "document"), ("[]", "document"), ('{"numbers": [1, "two"]}', r"numbers\.1"), ("{}", "numbers")],
)
async def test_nonsense_names_its_place(session: aiohttp.ClientSession, serve: Serve, body: str, path: str) -> None:
    """A body that is not JSON, or not of the shape, is a bad answer that names the path in the document."""
    handler, _ = answering(200, body=body)
    response = await get(client(session, await serve(handler)))
    with pytest.raises(BadAnswer, match=f"{path}: "):
        response.parse(Document)


@pytest.mark.parametrize(
    "address",
    [
        pytest.param(f"http://{'a' * 64}.example", id="a label too long"),
        pytest.param("http://a..b", id="an empty label"),
        pytest.param("http://[::1", id="half a bracket"),
        pytest.param("//a", id="no scheme"),
        pytest.param("", id="nothing"),
    ],
)
async def test_address_that_is_none(session: aiohttp.ClientSession, address: str) -> None:
    """What a catalog brings for an address may be anything: it makes the service unavailable, and no more."""
    identity = Tokens()
    identity.address = address

    with pytest.raises(ServiceUnavailable, match="cannot be talked to"):
        await get(client(session, None, identity))


async def test_request_id_comes_from_the_context(session: aiohttp.ClientSession, serve: Serve) -> None:
    """The context's request identifier is sent, an argument overrides it, and one of another form is left out."""
    handler, seen = answering(200)
    things = client(session, await serve(handler))
    await get(things)
    reset = global_request_id.set(REQUEST_ID)
    try:
        await get(things)
        await get(things, request_id=REQUEST_ID.replace("0b7e", "ffff"))
        await get(things, request_id="x\r\nX-Auth-Token: stolen")
    finally:
        global_request_id.reset(reset)
    sent = [request.headers.get("X-Openstack-Request-Id") for request in seen]
    assert sent == [None, REQUEST_ID, REQUEST_ID.replace("0b7e", "ffff"), None]


async def test_every_exchange_is_counted(session: aiohttp.ClientSession, serve: Serve) -> None:
    """The observer hears of each attempt with its status, and of one without answer with status 0."""
    handler, _ = answering(401, 200)
    heard: list[tuple[str, str, int]] = []

    def observe(service: str, method: str, status: int, seconds: float) -> None:
        heard.append((service, method, status))

    await get(client(session, await serve(handler), Tokens(), on_request=observe))
    async with raw_server(b"") as address:
        with pytest.raises(ServiceUnavailable):
            await get(client(session, address, on_request=observe))
    assert heard == [("things", "GET", 401), ("things", "GET", 200), ("things", "GET", 0)]


async def test_endpoint_from_the_catalog(session: aiohttp.ClientSession, serve: Serve) -> None:
    """Without a configured endpoint the catalog's is used, without the version that some catalogs write."""
    handler, seen = answering(200)
    identity = Tokens()
    identity.address = await serve(handler)
    await get(client(session, None, identity))
    assert seen[0].path == "/thing/x"


async def test_service_that_wants_a_token(session: aiohttp.ClientSession, serve: Serve) -> None:
    """Without Keystone a 401 says that Keystone must be configured."""
    handler, _ = answering(401)
    with pytest.raises(AuthenticationFailed, match=r"auth\.type"):
        await get(client(session, await serve(handler)))


async def test_no_identity_needs_an_endpoint(session: aiohttp.ClientSession) -> None:
    """Without Keystone and without an endpoint the error says what to set."""
    with pytest.raises(EndpointMissing, match=r"set the endpoint"):
        await get(client(session, None))
