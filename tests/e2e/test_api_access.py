"""Who gets in, and a crowd at the door: real tokens of a real Keystone, a real API, a thousand requests at once."""

import asyncio
import re
import time
from collections import Counter
from typing import Any

import aiohttp
import pytest

from tests.e2e.agent_process import AgentProcess
from tests.e2e.cloud import Cloud
from tests.e2e.shell import Shell

pytestmark = pytest.mark.asyncio(loop_scope="session")

_CROWD = 1000
_ROUND = 10
_CREATES = _CROWD // _ROUND
_KINDS = (
    ("POST", "member", "/servers"),
    ("POST", "reader", "/servers"),
    ("GET", "nobody", "/servers"),
    ("GET", "member", "/servers/detail"),
)
"""The requests of each round of ten; the last kind is the rest of it."""
_SECONDS = 240


async def ask(cloud: Cloud, token: str | None, path: str = "/servers") -> tuple[int, Any]:
    """Status and body of the answer to a GET with ``token``."""
    headers = {} if token is None else {"X-Auth-Token": token}
    url = f"{cloud.lab.compute_urls[0]}{path}"
    async with aiohttp.ClientSession() as session, session.get(url, headers=headers) as answer:
        return answer.status, await answer.json()


async def keystone_token(cloud: Cloud, shell: Shell, **scope: Any) -> str:
    """A token of the shell's user, scoped as asked, or not at all."""
    variables = shell.variables
    user = {"name": variables["OS_USERNAME"], "domain": {"id": "default"}, "password": variables["OS_PASSWORD"]}
    auth = {"identity": {"methods": ["password"], "password": {"user": user}}, **scope}
    url = f"{cloud.lab.keystone_url}/v3/auth/tokens"
    async with aiohttp.ClientSession() as session, session.post(url, json={"auth": auth}) as answer:
        assert answer.status == 201
        return answer.headers["X-Subject-Token"]


async def revoke(cloud: Cloud, token: str) -> None:
    headers = {"X-Auth-Token": token, "X-Subject-Token": token}
    url = f"{cloud.lab.keystone_url}/v3/auth/tokens"
    async with aiohttp.ClientSession() as session, session.delete(url, headers=headers) as answer:
        assert answer.status == 204


@pytest.mark.parametrize(
    "token",
    [
        None,
        "",
        "wrong",
        "x" * 10_000,
        "größe".encode().decode("latin-1"),
        # In the form of Keystone's own, of another Keystone's key.
        "gAAAAABnQmZxGk0nYB0sJY8mCkqv7v2gq9w1Q7e1b1mT5oJ1VvXq8kZy9d3nS6hRrT0uWcXeFgHiJkLmNoPqRsTuVwXyZ0123456789abcdefg",
    ],
    ids=["none", "empty", "wrong", "long", "not ASCII", "of another Keystone"],
)
async def test_wrong_tokens(cloud: Cloud, token: str | None) -> None:
    """No token and one that this Keystone did not issue are a 401, which says who to ask."""
    status, body = await ask(cloud, token)
    assert status == 401
    assert set(body) == {"unauthorized"}
    assert body["unauthorized"]["code"] == 401


async def test_revoked_token(cloud: Cloud) -> None:
    """A token that was revoked, as one that has expired, is a 401."""
    shell = Shell(cloud.lab, "red-member")
    scope = {"project": {"name": "red", "domain": {"id": "default"}}}
    token, revoked = [await keystone_token(cloud, shell, scope=scope) for _ in range(2)]
    await revoke(cloud, revoked)
    assert (await ask(cloud, token))[0] == 200
    assert (await ask(cloud, revoked))[0] == 401


async def test_token_without_a_project(cloud: Cloud) -> None:
    """A token that is of no project opens nothing here."""
    token = await keystone_token(cloud, Shell(cloud.lab, "red-member"))
    status, body = await ask(cloud, token)
    assert status == 403
    assert set(body) == {"forbidden"}


async def test_another_project_in_the_address(cloud: Cloud) -> None:
    """The project in an old client's address must be the token's."""
    shell = Shell(cloud.lab, "red-member")
    issued = await shell.json("token", "issue")
    assert (await ask(cloud, issued["id"], f"/{issued['project_id']}/servers"))[0] == 200
    status, body = await ask(cloud, issued["id"], f"/{'0' * 32}/servers")
    assert status == 400
    assert set(body) == {"badRequest"}


async def test_a_thousand_requests_at_once(agent: AgentProcess, cloud: Cloud) -> None:
    """A thousand requests at once are each answered as one alone; creates are taken whole, or refused whole.

    Slots are fewer than what is asked for, so most of the servers end in ERROR with the scheduler's explanation.
    """
    member, reader = Shell(cloud.lab, "red-member"), Shell(cloud.lab, "blue-reader")
    tokens = await asyncio.gather(member.token(), reader.token())
    flavors = await member.json("flavor", "list")
    flavor = next(each["ID"] for each in flavors if each["Name"] == "sev.small")
    url = cloud.lab.compute_urls[0]
    timeout, connector = aiohttp.ClientTimeout(_SECONDS), aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:

        async def send(number: int) -> tuple[str, int]:
            body = {"server": {"name": f"crowd-{number}", "flavorRef": flavor, "imageRef": str(cloud.blank)}}
            method, token, path = _KINDS[min(number % _ROUND, len(_KINDS) - 1)]
            headers = {"X-Auth-Token": {"member": tokens[0], "reader": tokens[1]}.get(token, token)}
            sent = {"json": body} if method == "POST" else {}
            async with session.request(method, f"{url}{path}", headers=headers, **sent) as answer:
                await answer.read()
                return f"{method} by {token}", answer.status

        answers = Counter(await asyncio.gather(*(send(number) for number in range(_CROWD))))
    assert answers == {
        ("POST by member", 202): _CREATES,
        ("POST by reader", 403): _CREATES,
        ("GET by nobody", 401): _CREATES,
        ("GET by member", 200): _CROWD - 3 * _CREATES,
    }
    connection = await member.connection()
    servers = await asyncio.to_thread(_settled, connection)
    assert sorted(each.name for each in servers) == sorted(f"crowd-{n}" for n in range(0, _CROWD, _ROUND))
    statuses = Counter(each.status for each in servers)
    assert statuses == {"ACTIVE": cloud.slots, "ERROR": _CREATES - cloud.slots}
    reasons = {each.fault["message"] for each in servers if each.status == "ERROR"}
    assert all(re.search("no valid host", reason, re.IGNORECASE) for reason in reasons)
    await asyncio.to_thread(_delete_all, connection, servers)


def _settled(connection: Any) -> list[Any]:
    deadline = time.monotonic() + _SECONDS
    while True:
        servers = list(connection.compute.servers(details=True))
        if all(each.status != "BUILD" for each in servers):
            return servers
        assert time.monotonic() < deadline, Counter(each.status for each in servers)
        time.sleep(0.5)


def _delete_all(connection: Any, servers: list[Any]) -> None:
    for each in servers:
        connection.compute.delete_server(each)
    for each in servers:
        connection.compute.wait_for_delete(each, wait=_SECONDS)
