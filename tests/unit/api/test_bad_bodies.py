"""A body that is no JSON, or more than anybody could mean, is refused before it is looked into."""

import base64
import io
import json
from collections.abc import AsyncIterator

import pytest

from tests.compute_api import InProcessApi
from tests.unit.api.requests import make_flavor, make_image, message, nothing_is_there, server

MIB = 1024**2


@pytest.mark.parametrize(
    ("body", "status", "text"),
    [
        (b"", 400, "server"),
        (b"{", 400, "Malformed request body"),
        (b"null", 400, "server"),
        (b"[]", 400, "body"),
        (b'"server"', 400, "body"),
        (b'{"server": NaN}', 400, "Malformed request body"),
        (b'{"server": "\xff"}', 400, "Malformed request body"),
        (b'{"server": "\\ud800"}', 400, "not allowed"),
        (b'{"server": "\\u0000"}', 400, "not allowed"),
        (b'{"server": ' + b"[" * 50_000 + b"]" * 50_000 + b"}", 400, "nested"),
        (b'{"server": ' + b'{"a":' * 30 + b"1" + b"}" * 30 + b"}", 400, "nested"),
        (b'{"server": ' + b"9" * 100_000 + b"}", 400, ""),
        (b'{"server": {"name": "' + b"x" * 300_000 + b'"}}', 413, "too large"),
    ],
    ids=lambda value: str(value)[:30] if isinstance(value, bytes) else None,
)
async def test_bad_body(api: InProcessApi, body: bytes, status: int, text: str) -> None:
    """What is no JSON, or no JSON that anybody could mean, is refused before it is looked into."""
    found, answer = await api.ask("POST", "/servers", data=body, headers={"Content-Type": "application/json"})
    assert found == status
    assert text in message(status, answer)
    assert await nothing_is_there(api)


async def test_ten_megabytes_of_user_data(api: InProcessApi) -> None:
    """User data of 10 MB is more than the API reads."""
    await make_flavor(api)
    body = json.dumps(server(make_image(api), user_data=base64.b64encode(bytes(10 * MIB)).decode()))
    headers = {"Content-Type": "application/json"}
    status, answer = await api.ask("POST", "/servers", data=io.BytesIO(body.encode()), headers=headers)
    assert status == 413
    assert "too large" in message(413, answer)
    assert await nothing_is_there(api)


@pytest.mark.parametrize("declared", [True, False], ids=["with its length", "in chunks"])
async def test_a_hundred_megabytes(api: InProcessApi, *, declared: bool) -> None:
    """A body of 100 MB is refused by its length, or as soon as there is too much of it."""

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield bytes(MIB)

    headers = {"Content-Type": "application/json"} | ({"Content-Length": str(100 * MIB)} if declared else {})
    status, answer = await api.ask("POST", "/servers", data=chunks(), headers=headers)
    assert status == 413
    message(413, answer)
    assert await nothing_is_there(api)


@pytest.mark.parametrize("kind", ["text/plain", "application/xml", "multipart/form-data; boundary=x", "nonsense"])
async def test_content_type(api: InProcessApi, kind: str) -> None:
    """A body that does not say that it is JSON is a 415."""
    await make_flavor(api)
    body = json.dumps(server(make_image(api))).encode()
    status, answer = await api.ask("POST", "/servers", data=body, headers={"Content-Type": kind})
    assert status == 415
    assert "Content-Type" in message(415, answer)
    assert await nothing_is_there(api)
