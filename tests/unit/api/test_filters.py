"""Which servers the filters of a list leave."""

from typing import Any

import pytest

from tests.compute_api import InProcessApi
from tests.unit.api.requests import make_flavor, make_image, server

NAMES = ("web.example.com", "web-example-com", "Web_1", "web%1", "a/b")


async def listed(api: InProcessApi, **params: str) -> list[str]:
    """The names that a list shows, oldest first."""
    params = {"sort_key": "created_at", "sort_dir": "asc", **params}
    status, body = await api.ask("GET", "/servers", params=params, version="2.61")
    assert status == 200, body
    return [each["name"] for each in body["servers"]]


async def make(api: InProcessApi, *servers: dict[str, Any]) -> None:
    await make_flavor(api)
    image = make_image(api)
    for fields in servers:
        body = server(image, networks="none", **fields)
        assert (await api.ask("POST", "/servers", json=body, version="2.61"))[0] == 202


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("web.example.com", ("web.example.com", "web-example-com")),
        ("^web.example.com$", ("web.example.com", "web-example-com")),
        (r"^web\.example\.com$", ("web.example.com",)),
        (r"web\.example", ("web.example.com",)),
        ("^web.1$", ("Web_1", "web%1")),
        ("^web_1$", ()),
        ("^Web_1$", ("Web_1",)),
        ("web_", ("Web_1",)),
        ("b%", ("web%1",)),
        ("A/B", ("a/b",)),
        ("^w.*m$", ("web.example.com", "web-example-com")),
        ("^.$", ()),
        ("", NAMES),
    ],
)
async def test_names(api: InProcessApi, pattern: str, expected: tuple[str, ...]) -> None:
    """A dot is any one character, an escaped one itself; what the database's LIKE would read otherwise is plain."""
    await make(api, *({"name": name} for name in NAMES))
    assert tuple(await listed(api, name=pattern)) == expected
