"""Every kind of bad input gets the compute API's own status and error body, and leaves nothing behind."""

import asyncio
import base64
import resource
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from tests.compute_api import QUOTA, InProcessApi
from tests.unit.api.requests import make_flavor, make_image, message, nothing_is_there, server, unknown


async def test_unknown_flavor(api: InProcessApi) -> None:
    """A flavor that is not there is a 404 to who looks for it, and a 400 to who wants a server of it."""
    status, body = await api.ask("GET", "/flavors/nothing")
    assert status == 404
    assert "nothing" in message(404, body)
    status, body = await api.ask("POST", "/servers", json=server(make_image(api), "nothing"))
    assert status == 400
    assert "server.flavorRef" in message(400, body)
    assert await nothing_is_there(api)


async def test_private_flavor(api: InProcessApi) -> None:
    """A flavor that the project may not use is as one that is not there."""
    flavor = {"id": "own", "name": "own", "ram": 512, "vcpus": 1, "disk": 1, "os-flavor-access:is_public": False}
    await api.ask("POST", "/flavors", json={"flavor": flavor})
    assert (await api.ask("GET", "/flavors/own", roles="member"))[0] == 404
    body = server(make_image(api), "own")
    assert (await api.ask("POST", "/servers", json=body, roles="member"))[0] == 400
    status, answer = await api.ask("GET", "/flavors", params={"marker": "own"}, roles="member")
    assert (status, message(400, answer)) == (400, "marker [own] not found")
    assert (await api.ask("GET", "/flavors", params={"marker": "own"}))[0] == 200


@pytest.mark.parametrize("image", [unknown(), "not-a-uuid", "", "../../etc/passwd"])
async def test_unknown_image(api: InProcessApi, image: str) -> None:
    """An image that is not there, or whose identifier is none, is a 400 that names the field."""
    await make_flavor(api)
    status, body = await api.ask("POST", "/servers", json=server(image))
    assert status == 400
    assert "server.imageRef" in message(400, body)
    assert await nothing_is_there(api)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"name": "x" * 256}, "server.name"),
        ({"name": ""}, "server.name"),
        ({"name": "   "}, "server.name"),
        ({"name": "a\nb"}, "server.name"),
        ({"name": 5}, "server.name"),
        ({"name": None}, "server.name"),
        ({"flavorRef": None}, "server.flavorRef"),
        ({"user_data": base64.b64encode(bytes(64 * 1024)).decode()}, "server.user_data"),
        ({"user_data": "not base64!"}, "server.user_data"),
        ({"key_name": "nothing"}, "server.key_name"),
        ({"min_count": -1}, "server.min_count"),
        ({"min_count": 0}, "server.min_count"),
        ({"max_count": 10**9}, "server.max_count"),
        ({"max_count": 10**100}, "server.max_count"),
        ({"min_count": 3, "max_count": 2}, "min_count"),
        ({"min_count": 1.5}, "server.min_count"),
        ({"min_count": "1e3"}, "server.min_count"),
        ({"min_count": True}, "server.min_count"),
        ({"metadata": {"a": 1}}, "server.metadata.a"),
        ({"metadata": {"a": "x" * 256}}, "server.metadata.a"),
        ({"metadata": "a"}, "server.metadata"),
        ({"networks": [{"uuid": unknown()}]}, "could not be found"),
        ({"networks": [{"uuid": "x"}]}, "server.networks"),
        ({"networks": "some"}, "server.networks"),
        ({"availability_zone": "mars"}, "server.availability_zone"),
        ({"colour": "red"}, "server.colour: is not known here"),
        ({"personality": [{"path": "/etc/motd", "contents": ""}]}, "personality"),
    ],
)
async def test_bad_server(api: InProcessApi, fields: dict[str, Any], text: str) -> None:
    """A field that cannot be is a 400 that names it, and no server is made."""
    await make_flavor(api)
    status, body = await api.ask("POST", "/servers", json=server(make_image(api), **fields))
    assert status == 400
    assert text in message(400, body)
    assert await nothing_is_there(api)


async def test_more_than_the_quota(api: InProcessApi) -> None:
    """More servers than the project may have are a 403, and none of them is made."""
    await make_flavor(api)
    status, body = await api.ask("POST", "/servers", json=server(make_image(api), max_count=11, min_count=11))
    assert status == 403
    assert "instances: Requested 11, but already used 0 of 10 instances" in message(403, body)
    assert await nothing_is_there(api)


async def test_as_many_as_the_quota_allows(api: InProcessApi) -> None:
    """Between the least and the most that are asked for, as in Nova; 403 once the least is over the quota."""
    await make_flavor(api)
    wanted = server(make_image(api), min_count=2, max_count=20)
    assert (await api.ask("POST", "/servers", json=server(make_image(api))))[0] == 202
    assert (await api.ask("POST", "/servers", json=wanted))[0] == 202
    _, listed = await api.ask("GET", "/servers")
    assert len(listed["servers"]) == QUOTA.servers == len(api.sent.casts)
    assert "Requested 2, but already used 10 of 10" in message(*await api.ask("POST", "/servers", json=wanted))
    assert len(api.sent.casts) == QUOTA.servers


async def test_too_much_metadata(api: InProcessApi) -> None:
    """More items than a server may have are over a quota, so 403: at its creation, and later."""
    await make_flavor(api)
    many = {f"k{index}": "v" for index in range(129)}
    refused = await api.ask("POST", "/servers", json=server(make_image(api), metadata=many))
    assert "exceeds 128" in message(*refused)
    assert refused[0] == 403
    assert await nothing_is_there(api)
    _, made = await api.ask("POST", "/servers", json=server(make_image(api), metadata={"a": "c"}))
    path = f"/servers/{made['server']['id']}/metadata"
    for method, body in (("POST", dict(list(many.items())[:128])), ("PUT", many)):
        assert (await api.ask(method, path, json={"metadata": body}))[0] == 403
    assert await api.ask("GET", path) == (200, {"metadata": {"a": "c"}})


@pytest.mark.parametrize(
    ("path", "params", "status", "text"),
    [
        ("/servers", {"sort_key": "colour"}, 400, "sort_key"),
        ("/servers", {"sort_key": "host"}, 400, "sort_key"),
        ("/servers", {"sort_key": "name", "sort_dir": "sideways"}, 400, "sort_dir"),
        ("/servers", {"limit": "-1"}, 400, "limit"),
        ("/servers", {"limit": "many"}, 400, "limit"),
        ("/servers", {"limit": "9" * 30}, 200, ""),
        ("/servers", {"marker": unknown()}, 400, "marker"),
        ("/servers", {"marker": "x" * 5000}, 400, "marker"),
        ("/servers/detail", {"changes-since": "yesterday"}, 400, "changes-since"),
        ("/servers", {"name": "(a+)+$"}, 400, "regular expression"),
        ("/servers", {"name": "a.+b"}, 400, "regular expression"),
        ("/servers", {"name": "a\\.*b"}, 400, "regular expression"),
        ("/servers", {"name": "a\\"}, 400, "regular expression"),
        ("/servers", {"colour": "red"}, 200, ""),
        ("/servers", {"status": "PURPLE"}, 200, ""),
        ("/servers", {"all_tenants": "perhaps"}, 400, "all_tenants"),
        ("/flavors", {"sort_key": "colour"}, 400, "sort_key"),
        ("/flavors", {"marker": "gone"}, 400, "marker"),
        ("/flavors", {"limit": "-1"}, 400, "limit"),
        ("/flavors", {"minRam": "-1"}, 400, "minRam"),
        ("/flavors", {"is_public": "perhaps"}, 200, ""),
    ],
)
async def test_bad_query(api: InProcessApi, path: str, params: dict[str, str], status: int, text: str) -> None:
    """A sort key, a marker or a limit that cannot be is a 400; an unknown filter, or one of others, is ignored."""
    found, body = await api.ask("GET", path, params=params, roles="member")
    assert found == status
    if status != 200:
        assert text in message(status, body)


@pytest.mark.parametrize(
    ("version", "status"),
    [("2.999", 406), ("3.0", 406), ("1.0", 406), ("2.0", 406), ("latest", 200), ("2.01", 400), ("two", 400), ("", 400)],
)
async def test_microversion(api: InProcessApi, version: str, status: int) -> None:
    """A microversion that is not served is a 406, one that is none a 400."""
    found, body = await api.ask("GET", "/servers", version=version)
    assert found == status
    if status != 200:
        message(status, body)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("GET", "/servers/a/b/c", 404),
        ("PATCH", "/servers", 405),
        ("DELETE", "/flavors", 405),
        ("GET", f"/servers/{unknown()}/action", 405),
        ("GET", "/servers/%00", 400),
        ("GET", "/servers/%ff", 404),
        ("GET", "/servers/..%2f..%2fetc", 404),
    ],
)
async def test_bad_path(api: InProcessApi, method: str, path: str, status: int) -> None:
    """A path that is not there is a 404, a method that it does not have a 405."""
    found, body = await api.ask(method, path)
    assert found == status
    message(status, body)


async def test_missing_role(api: InProcessApi) -> None:
    """Readers look and change nothing; who has no role here does not even look."""
    await make_flavor(api)
    body = server(make_image(api))
    _, made = await api.ask("POST", "/servers", json=body)
    path = f"/servers/{made['server']['id']}"
    assert (await api.ask("GET", path, roles="reader"))[0] == 200
    for roles, allowed in (("reader", ()), ("auditor", ()), ("member", ("/servers", path))):
        for method, asked, sent in (
            ("POST", "/servers", body),
            ("PUT", path, {"server": {"name": "new"}}),
            ("POST", "/flavors", {"flavor": {"name": "own", "ram": 64, "vcpus": 1, "disk": 1}}),
            ("DELETE", "/flavors/small", None),
            ("POST", "/flavors/small/os-extra_specs", {"extra_specs": {"a": "b"}}),
        ):
            if asked not in allowed:
                status, answer = await api.ask(method, asked, json=sent, roles=roles)
                assert status == 403, (roles, method, asked)
                assert "role" in message(403, answer)
    assert (await api.ask("GET", "/servers", roles="auditor"))[0] == 403


async def test_host_by_name(api: InProcessApi) -> None:
    """Only an administrator may name a server's host."""
    await make_flavor(api)
    body = server(make_image(api), availability_zone="nova:compute-1")
    status, answer = await api.ask("POST", "/servers", json=body, roles="member")
    assert status == 403
    message(403, answer)
    assert await nothing_is_there(api)
    assert (await api.ask("POST", "/servers", json=body))[0] == 202


@pytest.mark.parametrize(
    ("action", "status"),
    [
        ({"os-start": None}, 409),
        ({"os-stop": None}, 409),
        ({"reboot": {"type": "SOFT"}}, 409),
        ({"reboot": {"type": "HARD"}}, 409),
        ({"os-getConsoleOutput": {}}, 409),
        ({"reboot": {"type": "GENTLE"}}, 400),
        ({"reboot": None}, 400),
        ({"os-getConsoleOutput": {"length": "many"}}, 400),
        ({"os-getConsoleOutput": {"length": {}}}, 400),
        ({"explode": {}}, 400),
        ({"os-start": None, "os-stop": None}, 400),
        ({}, 400),
        ([], 400),
    ],
)
async def test_action_in_the_wrong_state(api: InProcessApi, action: Any, status: int) -> None:
    """What a server that is being built cannot do is a 409; what no server can do a 400. It stays as it was."""
    await make_flavor(api)
    _, made = await api.ask("POST", "/servers", json=server(make_image(api)))
    path = f"/servers/{made['server']['id']}"
    found, answer = await api.ask("POST", f"{path}/action", json=action)
    assert found == status
    message(status, answer)
    _, shown = await api.ask("GET", path)
    assert (shown["server"]["status"], shown["server"]["OS-EXT-STS:task_state"]) == ("BUILD", "scheduling")
    assert len(api.sent.casts) == 1


@pytest.fixture
def room_for_connections() -> Iterator[None]:
    """Descriptors for both ends of a thousand connections, which a shell's usual limit has not."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(max(soft, 4096), hard), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_a_thousand_at_once(api: InProcessApi, room_for_connections: None) -> None:
    """A thousand requests at once are each answered as one alone; as many servers are made as the quota has."""
    await make_flavor(api)
    body = server(make_image(api))
    kinds: list[tuple[str, str, dict[str, Any]]] = [
        ("POST", "/servers", {"json": body}),
        ("POST", "/servers", {"json": body, "roles": "reader"}),
        ("POST", "/servers", {"json": server(unknown())}),
        ("GET", "/servers/detail", {}),
        ("GET", "/flavors/detail", {"roles": "member"}),
    ]

    async def one(number: int) -> tuple[int, int]:
        kind = number % len(kinds)
        method, path, options = kinds[kind]
        return kind, (await api.ask(method, path, **options))[0]

    answers = Counter(await asyncio.gather(*(one(number) for number in range(1000))))

    quota = QUOTA.servers
    assert answers == {
        (0, 202): quota,
        (0, 403): 200 - quota,
        (1, 403): 200,
        (2, 400): 200,
        (3, 200): 200,
        (4, 200): 200,
    }
    _, listed = await api.ask("GET", "/servers")
    assert len(listed["servers"]) == quota == len(api.sent.casts)
