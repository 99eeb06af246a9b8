"""A crowd at the door: a thousand requests at once, by whoever may and may not."""

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
            sent = body if method == "POST" else None
            async with session.request(method, f"{url}{path}", headers=headers, json=sent) as answer:
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
