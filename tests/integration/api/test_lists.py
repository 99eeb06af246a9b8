"""Lists of servers: filters, order, pages."""

from typing import Any
from urllib.parse import quote, urlsplit

import pytest

from tests.integration.api.conftest import Api, StartApi, new_flavor

ESCAPED = "name=" + quote(r"^db\.two$")
"""A name with a dot, as a regular expression has it."""


@pytest.fixture
async def three(api: Api) -> list[str]:
    """Three servers of a flavor of their own: an active one, one in error, one that builds; oldest first."""
    active = await api.create(name="web-one", metadata={"n": "1"}, tags=["a", "b"])
    failed = await api.create(name="db.two")
    builds = await api.create(name="Web_three")
    await api.fleet.builds(active)
    await api.fleet.no_host(failed, "none")
    await api.wait(active, lambda shown: shown["status"] == "ACTIVE")
    await api.wait(failed, lambda shown: shown["status"] == "ERROR")
    return [active, failed, builds]


async def listed(api: Api, query: str, *, user: str = "alice", version: str = "2.61") -> list[str]:
    separator = "&" if query else ""
    path = f"/servers/detail?flavor={api.flavor}{separator}{query}"
    status, body = await api.ask("GET", path, user=user, version=version)
    assert status == 200, body
    return [server["id"] for server in body["servers"]]


async def test_filters(api: Api, three: list[str]) -> None:
    """Each narrows the list, all together more; those of administrators do nothing for others."""
    active, failed, builds = three
    for query, expected in {
        "": [builds, failed, active],
        "name=web": [builds, active],
        "name=^web-one$": [active],
        ESCAPED: [failed],
        "name=db.two": [failed],
        "name=^w.b.one$": [active],
        "name=^w.b$": [],
        "name=^WEB.*e$": [builds, active],
        "name=_": [builds],
        "name=%25": [],
        "status=active": [active],
        "status=ERROR": [failed],
        "status=PAUSED": [],
        "name=web&status=BUILD": [builds],
        f"image={api.tenants.image}": [builds, failed, active],
        f"image={api.tenants.plain}": [],
        f"uuid={failed}": [failed],
        "vm_state=active": [active],
        "host=nowhere": [builds, failed, active],
        "tags=a,b": [active],
        "tags-any=b,c": [active],
        "not-tags=a,c": [builds, failed, active],
        "not-tags-any=b,c": [builds, failed],
        "no_such_filter=1": [builds, failed, active],
        "changes-since=2000-01-01T00:00:00Z": [builds, failed, active],
        "changes-since=2100-01-01T00:00:00": [],
    }.items():
        assert await listed(api, query) == expected, query
    for query, expected in {
        f"host={api.fleet.host}&all_tenants=1": [active],
        "host=nowhere&all_tenants=true": [],
        f"project_id={api.tenants.projects['red']}&all_tenants=1": [builds, failed, active],
        f"project_id={api.tenants.projects['blue']}&all_tenants=1": [],
    }.items():
        assert await listed(api, query, user="admin") == expected, query


BAD_QUERIES = [
    "sort_key=no_such_key",
    "sort_key=host",
    "sort_dir=up",
    "sort_key=name&sort_dir=asc&sort_dir=desc",
    "limit=-1",
    "limit=many",
    "marker=no-such-server",
    "marker=00000000-0000-4000-8000-000000000000",
    "changes-since=yesterday",
    "all_tenants=perhaps",
    "name=(a%2B)%2B",
    "name=%00",
    "ip=10.0.0.1",
    "status=NONSENSE",
    "sort_key=" + "x" * 70,
]


async def test_what_cannot_be_asked(api: Api) -> None:
    """400 that names it."""
    for query in BAD_QUERIES:
        status, body = await api.ask("GET", f"/servers?{query}")
        assert (status, body["badRequest"]["code"]) == (400, 400), query


async def test_an_unknown_status_before_2_38(api: Api) -> None:
    """It matches nothing, as with Nova."""
    assert await listed(api, "status=NONSENSE", version="2.37") == []


async def test_order(api: Api, three: list[str]) -> None:
    """By any key and direction, by several keys; administrators also by host."""
    active, failed, builds = three
    assert await listed(api, "sort_key=created_at&sort_dir=asc") == [active, failed, builds]
    assert await listed(api, "sort_key=display_name&sort_dir=asc") in (
        [builds, failed, active],
        [failed, builds, active],
        [failed, active, builds],
    )
    by_state = await listed(api, "sort_key=vm_state&sort_key=created_at&sort_dir=asc&sort_dir=desc")
    assert by_state == [active, builds, failed]
    by_host = await listed(api, "sort_key=host&all_tenants=1", user="admin")
    assert by_host[0] == active


async def test_pages(api: Api, three: list[str]) -> None:
    """Following the links shows each server once, in every order, also by a key that is null for some."""
    for order in ("", "&sort_key=task_state", "&sort_key=launched_at&sort_dir=asc", "&sort_key=name&sort_dir=asc"):
        found: list[Any] = []
        path: str | None = f"/servers/detail?flavor={api.flavor}&limit=1{order}"
        while path is not None:
            status, body = await api.ask("GET", path)
            assert status == 200
            found += [server["id"] for server in body["servers"]]
            following = body.get("servers_links", [])
            url = urlsplit(following[0]["href"]) if following else None
            path = f"{url.path.removeprefix('/v2.1')}?{url.query}" if url else None
        assert sorted(found) == sorted(three), order


async def test_a_limit_of_nothing(api: Api, three: list[str]) -> None:
    """No servers, and no link to more of them."""
    del three
    assert await api.ask("GET", "/servers?limit=0") == (200, {"servers": []})


async def test_deleted_servers_are_told_to_those_who_ask_what_changed(api: Api, three: list[str]) -> None:
    """As DELETED, and to nobody else."""
    failed = three[1]
    await api.ask("DELETE", f"/servers/{failed}")
    assert failed not in await listed(api, "")
    _, body = await api.ask("GET", f"/servers/detail?flavor={api.flavor}&changes-since=2000-01-01T00:00:00Z")
    assert {server["id"]: server["status"] for server in body["servers"]}[failed] == "DELETED"
    assert await listed(api, "deleted=true&all_tenants=1", user="admin") == [failed]


async def test_flavors_that_are_private(start_api: StartApi) -> None:
    """There for the projects that were given access, and for nobody else; creation included."""
    api = await start_api()
    api.flavor = await new_flavor(api, public=False)
    blue = {"addTenantAccess": {"tenant": api.tenants.projects["blue"]}}
    assert (await api.ask("POST", f"/flavors/{api.flavor}/action", user="admin", json=blue))[0] == 200
    assert (await api.ask("GET", f"/flavors/{api.flavor}", user="bob"))[0] == 200
    assert (await api.ask("GET", f"/flavors/{api.flavor}", user="alice"))[0] == 404
    seen = {
        user: api.flavor in str((await api.ask("GET", "/flavors?is_public=None", user=user))[1])
        for user in ("alice", "bob", "admin")
    }
    assert seen == {"alice": False, "bob": True, "admin": True}
    status, body = await api.ask("POST", "/servers", json=api.wanted())
    assert (status, body["badRequest"]["message"]) == (
        400,
        f"server.flavorRef: Flavor {api.flavor} could not be found.",
    )
    await api.create(user="bob")
