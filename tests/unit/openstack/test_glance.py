import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID

import aiohttp
import pytest
from aiohttp import web

from sev_agent.config import ServiceSection
from sev_agent.openstack.exchange import BadAnswer, ServiceUnavailable
from sev_agent.openstack.glance import CHUNK, Glance, Image, ImageNotFound, ImageWithoutData
from sev_agent.openstack.identity import NoIdentity
from tests.unit.openstack.conftest import Serve
from tests.unit.openstack.raw_server import raw_server

ID = UUID("5f9d7a2c-0c2e-4d64-9a3c-1f7f4c0f2b11")
DOCUMENT: dict[str, Any] = {
    "id": str(ID),
    "name": "debian",
    "status": "active",
    "visibility": "public",
    "disk_format": "qcow2",
    "container_format": "bare",
    "size": 5,
    "virtual_size": None,
    "min_disk": 1,
    "min_ram": 256,
    "checksum": "abc",
    "os_hash_algo": "sha512",
    "os_hash_value": "def",
    "os_hidden": False,
    "owner": "someone",
    "protected": False,
    "tags": ["a"],
    "locations": [],
    "created_at": "2026-01-01T00:00:00Z",
    "updated_at": "2026-01-01T00:00:00Z",
    "self": "/v2/images/5f",
    "file": "/v2/images/5f/file",
    "schema": "/v2/schemas/image",
    "hw_mem_encryption": "True",
    "hw_firmware_type": "uefi",
}


def glance(session: aiohttp.ClientSession, address: str) -> Glance:
    return Glance(session, NoIdentity(), ServiceSection(endpoint=address, timeout=5))


def image(size: int | None = 5) -> Image:
    return Image(
        id=ID,
        name="debian",
        status="active",
        visibility="public",
        disk_format="qcow2",
        container_format="bare",
        size=size,
        virtual_size=None,
        min_disk=1,
        min_ram=256,
        checksum="abc",
        os_hash_algo="sha512",
        os_hash_value="def",
        os_hidden=False,
        owner="someone",
        properties={"hw_mem_encryption": "True", "hw_firmware_type": "uefi"},
    )


async def pieces(glance: Glance, image: Image, *, total: float = 5, idle: float = 5) -> list[bytes]:
    async with glance.download(image, total_timeout=total, idle_timeout=idle) as chunks:
        return [chunk async for chunk in chunks]


async def test_get_image(session: aiohttp.ClientSession, serve: Serve) -> None:
    """Glance's own fields become fields, and the other strings properties."""

    async def handle(request: web.Request) -> web.Response:
        assert request.path == f"/v2/images/{ID}"
        return web.json_response(DOCUMENT)

    assert await glance(session, await serve(handle)).get_image(ID) == image()


async def test_missing_image(session: aiohttp.ClientSession, serve: Serve) -> None:
    """A missing image is an error that names the field of the request."""

    async def handle(_: web.Request) -> web.Response:
        return web.Response(status=404, text="<html>no</html>")

    address = await serve(handle)
    for operation in (
        glance(session, address).get_image(ID),
        pieces(glance(session, address), image()),
        glance(session, address).set_properties(ID, {"a": "b"}),
    ):
        with pytest.raises(ImageNotFound) as caught:
            await operation
        assert caught.value.code == "image.not_found"
        assert caught.value.field == "instance.image.id"
        assert not caught.value.retryable


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": "00000000-0000-0000-0000-000000000000"}, "instead of"),
        ({"id": "x"}, "id: "),
        ({"size": -1}, "size: "),
        ({"status": None}, "status: "),
        ({"min_ram": "lots"}, "min_ram: "),
    ],
)
async def test_nonsense(session: aiohttp.ClientSession, serve: Serve, change: dict[str, Any], message: str) -> None:
    """An image document that cannot be used is a bad answer that names the field."""

    async def handle(_: web.Request) -> web.Response:
        return web.json_response({**DOCUMENT, **change})

    with pytest.raises(BadAnswer, match=message):
        await glance(session, await serve(handle)).get_image(ID)


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 17])
async def test_download_in_pieces(session: aiohttp.ClientSession, serve: Serve, size: int, *, chunked: bool) -> None:
    """Every piece but the last has the full size, and together they are the image."""
    content = (bytes(range(251)) * (size // 251 + 1))[:size]

    async def handle(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        if not chunked:
            response.content_length = size
        await response.prepare(request)
        for start in range(0, size, 100_000):
            await response.write(content[start : start + 100_000])
        return response

    got = await pieces(glance(session, await serve(handle)), image(size))
    assert [len(piece) for piece in got[:-1]] == [CHUNK] * (len(got) - 1)
    assert b"".join(got) == content


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        (b"Content-Length: 5\r\n\r\nabc", ServiceUnavailable, "cannot be talked to"),
        (b"Content-Length: 6\r\n\r\nabcdef", BadAnswer, "sends 6 bytes of an image that has 5"),
        (b"Content-Length: 4\r\n\r\nabcd", BadAnswer, "sends 4 bytes"),
        (b"Connection: close\r\n\r\nabc", BadAnswer, "ended after 3 of the image's 5"),
        (b"Connection: close\r\n\r\nabcdefgh", BadAnswer, "more than the 5"),
        (b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", ServiceUnavailable, "cannot be talked to"),
    ],
)
async def test_download_of_another_length(
    session: aiohttp.ClientSession, answer: bytes, error: type[Exception], message: str
) -> None:
    """A download that is cut short, or has another length than the image, never looks complete."""
    async with raw_server(b"HTTP/1.1 200 OK\r\n" + answer) as address:
        with pytest.raises(error, match=message) as caught:
            await pieces(glance(session, address), image())
    assert type(caught.value) is error


async def test_download_that_stalls(session: aiohttp.ClientSession) -> None:
    """Silence for longer than the idle limit ends a download long before its total limit."""
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc"
    async with raw_server(answer, hang=True) as address, asyncio.timeout(5):
        with pytest.raises(ServiceUnavailable, match="in time"):
            await pieces(glance(session, address), image(), total=60, idle=0.2)


async def test_download_that_trickles(session: aiohttp.ClientSession, serve: Serve) -> None:
    """A download that never falls silent ends at the total limit."""

    async def handle(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        async for piece in _trickle():
            await response.write(piece)
        return response

    with pytest.raises(ServiceUnavailable, match="in time"):
        await pieces(glance(session, await serve(handle)), image(None), total=0.5, idle=5)


async def _trickle() -> AsyncIterator[bytes]:
    for _ in range(1000):
        await asyncio.sleep(0.02)
        yield b"x"


async def test_consumers_errors_are_their_own(session: aiohttp.ClientSession, serve: Serve) -> None:
    """A full disk during a download is not taken for a fault of Glance."""

    async def handle(_: web.Request) -> web.Response:
        return web.Response(body=b"abcde")

    service = glance(session, await serve(handle))

    async def consume() -> None:
        async with service.download(image(), total_timeout=5, idle_timeout=5) as chunks:
            async for _ in chunks:
                raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        await consume()


async def test_image_without_data(session: aiohttp.ClientSession, serve: Serve) -> None:
    """An image that nothing was uploaded into is an error of its own."""

    async def handle(_: web.Request) -> web.Response:
        return web.Response(status=204)

    with pytest.raises(ImageWithoutData, match=str(ID)):
        await pieces(glance(session, await serve(handle)), image())


async def test_upload_streams_the_file(session: aiohttp.ClientSession, serve: Serve, tmp_path: Path) -> None:
    """The file arrives whole, with its length announced."""
    path = tmp_path / "image"
    path.write_bytes(b"0123456789abcdef" * 200_000)
    seen: list[tuple[str, str, int | None, str]] = []

    async def handle(request: web.Request) -> web.Response:
        digest = hashlib.sha256(await request.read()).hexdigest()
        seen.append((request.method, request.path, request.content_length, digest))
        return web.Response(status=204)

    await glance(session, await serve(handle)).upload(ID, path, total_timeout=10)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert seen == [("PUT", f"/v2/images/{ID}/file", 3_200_000, digest)]


async def test_upload_of_what_cannot_be_read(session: aiohttp.ClientSession, serve: Serve, tmp_path: Path) -> None:
    """A file that is not there, or fails while it is read, is not taken for a fault of Glance."""

    async def handle(request: web.Request) -> web.Response:
        await request.read()
        return web.Response(status=204)

    service = glance(session, await serve(handle))
    with pytest.raises(FileNotFoundError):
        await service.upload(ID, tmp_path / "none", total_timeout=10)
    with pytest.raises(IsADirectoryError):
        await service.upload(ID, tmp_path, total_timeout=10)


async def test_set_properties(session: aiohttp.ClientSession, serve: Serve) -> None:
    """Properties are set by a JSON patch whose pointers are escaped."""
    seen: list[tuple[str, str, Any]] = []

    async def handle(request: web.Request) -> web.Response:
        seen.append((request.method, request.headers["Content-Type"], json.loads(await request.read())))
        return web.json_response(DOCUMENT)

    await glance(session, await serve(handle)).set_properties(ID, {"hw_machine_type": "q35", "a/b~c": "d"})
    changes = [
        {"op": "add", "path": "/hw_machine_type", "value": "q35"},
        {"op": "add", "path": "/a~1b~0c", "value": "d"},
    ]
    assert seen == [("PATCH", "application/openstack-images-v2.1-json-patch", changes)]
