"""A disk that fills: builds end with the reason, nothing is left of them, and all goes on when there is room again."""

import asyncio
import os
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from sev_agent.domain.identity import domain_name
from sev_agent.messaging.client import RemoteError
from tests.e2e.ear import Ear
from tests.e2e.waiting import eventually
from tests.faults.conftest import World
from tests.faults.disk import full_disk
from tests.images import MIB

pytestmark = pytest.mark.asyncio(loop_scope="session")

_IMAGE_MIB = 16
_PATIENCE = 60.0


async def test_disk_fills_during_a_build(world: World, ear: Ear, tmp_path: Path) -> None:
    """A build whose image does not fit ends in an error that says so, and leaves nothing; with room it works."""
    await world.have()
    guest, image = await world.build(), await _upload(world, tmp_path)
    async with full_disk(world.cloud.images_dir, free=_IMAGE_MIB // 2 * MIB):
        failing = await world.begin(image__id=image)
        fault: Any = (await ear.hear(failing, "create.error")).payload["fault"]
        world.note()
        assert fault["code"] in {"disk.full", "image.no_space"}, fault
        assert fault["retryable"]
        assert fault["remedy"]
        world.asked[failing] = {"error"}
        assert await world.cloud.left(failing) == []
    await world.build(image__id=image)
    assert (await world.hold())[guest] == "active"


async def test_journal_is_full(world: World) -> None:
    """A request that cannot be written down is refused with the reason, and nothing is begun; records stay whole."""
    await world.have()
    guest, request = await world.build(), world.request()
    async with full_disk(world.cloud.state_dir / "instances", free=0):
        with pytest.raises(RemoteError) as caught:
            await world.cloud.order("build_and_run_instance", instance=request)
        world.note()
        assert caught.value.code == "journal.failed"
        assert caught.value.remedy
        view = await world.cloud.view(guest)
        assert view is not None
        assert view["state"] == "active"
    assert await world.cloud.view(request["uuid"]) is None
    await world.cloud.order("build_and_run_instance", instance=request)
    world.asked[UUID(request["uuid"])] = {"active"}
    await world.hold()
    await world.restart()
    await world.hold()


async def test_spool_is_full(world: World, ear: Ear) -> None:
    """What no broker takes and no spool can keep is told when the broker is back, also by the daemon's next life."""
    await world.have()
    guests = [await world.build() for _ in range(2)]
    assert await world.agent.stop() == 0
    async with full_disk(world.cloud.state_dir / "notifications", free=0):
        await world.start()
        for guest in guests:
            world.agent.forget_log()
            world.proxies.broker.refuse()
            assert (await world.cloud.virsh("destroy", domain_name(guest))).status == 0
            world.asked[guest] = {"stopped"}
            await eventually(lambda: _cannot_keep(world), within=_PATIENCE, what="the spool is full")
            world.note()
            if guest is guests[-1]:
                await world.agent.kill()
            else:
                world.proxies.broker.heal()
                await ear.hear(guest, "stop.end", within=_PATIENCE)
    await world.heal()
    await ear.hear(guests[-1], "stop.end", within=_PATIENCE)
    await world.hold()


async def _cannot_keep(world: World) -> bool:
    """Whether the daemon has noted that a guest stopped, and failed to keep what is to be told of it."""
    said = await asyncio.to_thread(world.agent.said)
    return '"outbox.keep.failed"' in said and await world.cloud.slots_used() == len(
        [states for states in world.asked.values() if states == {"active"}]
    )


async def _upload(world: World, directory: Path) -> str:
    path = directory / "image.raw"
    await asyncio.to_thread(path.write_bytes, os.urandom(MIB) * _IMAGE_MIB)
    return str(await world.cloud.upload(path, disk_format="raw"))
