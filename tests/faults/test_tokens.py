"""Keystone's tokens end, and are taken back: the daemon has another one before anybody notices."""

import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from sev_agent.lab.accounts import admin
from sev_agent.lab.openstack import SERVICE_USER
from sev_agent.openstack.identity import KeystoneIdentity
from tests.e2e.waiting import eventually
from tests.faults.conftest import World
from tests.faults.services import Leaned

pytestmark = pytest.mark.asyncio(loop_scope="session")

LIFE_SECONDS = 5
_RENEWALS = 3
_BACK_SECONDS = 10.0

_COUNT = "sev_agent_openstack_request_seconds_count"
_SHORT_LIVED: Mapping[str, Any] = {"reconciler__interval": 1, "reconciler__jitter": 0, "health__interval": 60}


async def test_token_ends(world: World) -> None:
    """With tokens that live for seconds the daemon renews them in time: no comparison fails, and builds work."""
    async with _keystone_with(world, f"[token]\nexpiration = {LIFE_SECONDS}"):
        await world.restart(**_SHORT_LIVED)
        before = await world.agent.metrics()

        async def renewed() -> bool:
            issued = {"service": "keystone", "method": "POST", "status": "201"}
            return (await world.agent.metrics())(_COUNT, **issued) >= before(_COUNT, **issued) + _RENEWALS

        await eventually(renewed, within=60, what=f"{_RENEWALS} new tokens")
        await world.build()
        after = await world.agent.metrics()
        assert after("sev_agent_reconciliations_total", outcome="failed") == before(
            "sev_agent_reconciliations_total", outcome="failed"
        )
        world.note()
        await world.hold()


async def test_token_is_taken_back(world: World) -> None:
    """A token that Keystone takes back is replaced by the first answer that says so, in the middle of a build too."""
    await world.have()
    guest = await world.build()
    await _revoke(world)
    # What Placement has learnt of the token it believes for minutes; another Placement asks Keystone.
    await world.services.kill(Leaned.PLACEMENT)
    await world.services.start(Leaned.PLACEMENT)
    began = time.monotonic()
    await world.build()
    assert time.monotonic() - began < _BACK_SECONDS
    world.note()
    await world.delete(guest)
    await world.hold()


@asynccontextmanager
async def _keystone_with(world: World, section: str) -> AsyncIterator[None]:
    """Keystone with another configuration, and after that the old one."""
    path = world.cloud.lab.directory / "keystone/keystone.conf"
    usual = path.read_text()
    assert "[token]\n" in usual
    path.write_text(usual.replace("[token]\n", f"{section}\n"))
    try:
        await world.services.kill(Leaned.KEYSTONE)
        await world.services.start(Leaned.KEYSTONE)
        yield
    finally:
        path.write_text(usual)
        await world.services.kill(Leaned.KEYSTONE)
        await world.services.start(Leaned.KEYSTONE)


async def _revoke(world: World) -> None:
    """Take back every token of the daemon's user, by switching the user off and on."""
    lab = world.cloud.lab
    async with aiohttp.ClientSession() as session:
        identity = KeystoneIdentity(session, admin(lab.cloud))
        headers = {"X-Auth-Token": await identity.token()}
        users = f"{lab.keystone_url}/v3/users"
        async with session.get(users, params={"name": SERVICE_USER}, headers=headers) as answer:
            (user,) = (await answer.json())["users"]
        for enabled in (False, True):
            change = {"user": {"enabled": enabled}}
            async with session.patch(f"{users}/{user['id']}", json=change, headers=headers) as answer:
                assert answer.status == 200
