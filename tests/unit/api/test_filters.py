"""Which servers the filters of a list leave."""

from typing import Any

import pytest

from tests.compute_api import InProcessApi
from tests.unit.api.requests import make_flavor, make_image, message, server

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


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({"tags": "a"}, ("ab", "ac")),
        ({"tags": "a,b"}, ("ab",)),
        ({"tags-any": "b,c"}, ("ab", "ac")),
        ({"not-tags": "a,b"}, ("ac", "quoted", "bare")),
        ({"not-tags-any": "b,c"}, ("quoted", "bare")),
        ({"tags": "a", "not-tags": "c"}, ("ab",)),
        ({"tags": "A"}, ()),
        ({"tags": 'x"a'}, ("quoted",)),
        ({"tags": "größe"}, ("quoted",)),
        ({"tags": ""}, ()),
    ],
)
async def test_tags(api: InProcessApi, params: dict[str, str], expected: tuple[str, ...]) -> None:
    """All of them, any of them, not all of them, none of them; each tag whole."""
    tags = {"ab": ["a", "b"], "ac": ["a", "c"], "quoted": ['x"a', "größe"], "bare": []}
    await make(api, *({"name": name, "tags": held} for name, held in tags.items()))
    assert tuple(await listed(api, **params)) == expected


async def test_more_tags_than_a_server_can_have(api: InProcessApi) -> None:
    """Such a question is refused, whatever the servers have."""
    status, body = await api.ask("GET", "/servers", params={"tags-any": "a," * 50}, version="2.26")
    assert status == 400
    assert "query.tags-any" in message(400, body)


async def test_tags_before_2_26(api: InProcessApi) -> None:
    """Older microversions know no tags, and ignore filters by them."""
    await make(api, {"name": "bare"})
    status, body = await api.ask("GET", "/servers", params={"tags": "a"}, version="2.25")
    assert (status, [each["name"] for each in body["servers"]]) == (200, ["bare"])


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("WEB", ("web-Größe",)),
        ("gröSSe", ()),
        ("GRößE", ("web-Größe",)),
        ("GRÖ", ()),
        ("^größe$", ()),
        ("ÉTÉ", ("ÉTÉ",)),
    ],
)
async def test_names_beyond_ascii(api: InProcessApi, pattern: str, expected: tuple[str, ...]) -> None:
    """The case of ASCII's letters is none, that of others counts: on every database alike."""
    await make(api, {"name": "web-Größe"}, {"name": "ÉTÉ"})
    assert tuple(await listed(api, name=pattern)) == expected
