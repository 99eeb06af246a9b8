"""A disk that fills: builds end with the reason, nothing is left of them, and all goes on when there is room again."""

import asyncio
import os
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from sev_agent.messaging.client import RemoteError
from tests.e2e.ear import Ear
from tests.faults.conftest import World
from tests.faults.disk import Disk
from tests.images import MIB

pytestmark = pytest.mark.asyncio(loop_scope="session")

_IMAGE_MIB = 16


async def test_disk_fills_during_a_build(world: World, ear: Ear, tmp_path: Path) -> None:
    """A build whose image does not fit ends in an error that says so, and leaves nothing; with room it works."""
    await world.have()
    disk, image = Disk(world.cloud.state_dir), await _upload(world, tmp_path)
    await world.build()
    await disk.leave(_IMAGE_MIB // 2 * MIB)
    try:
        failing = await world.begin(image__id=image)
        fault: Any = (await ear.hear(failing, "create.error")).payload["fault"]
        world.note()
        assert "disk" in fault["code"] or "cache" in fault["code"], fault
        assert fault["retryable"]
        assert fault["remedy"]
        world.asked[failing] = {"error"}
        assert await world.cloud.left(failing) == []
    finally:
        await disk.grow()
    await world.build(image__id=image)
    await world.hold()


async def test_no_byte_is_left(world: World) -> None:
    """On a disk without a free byte a request is refused and not forgotten, and a restart loses no record."""
    await world.have()
    disk, guest = Disk(world.cloud.state_dir), await world.build()
    await disk.leave(0)
    try:
        request = world.request()
        with pytest.raises(RemoteError) as caught:
            await world.cloud.order("build_and_run_instance", instance=request)
        world.note()
        assert caught.value.code == "journal.failed"
        assert caught.value.remedy
        view = await world.cloud.view(guest)
        assert view is not None
        assert view["state"] == "active"
        await world.agent.kill()
        await world.start()
        view = await world.cloud.view(guest)
        assert view is not None
        assert view["state"] == "active"
    finally:
        await disk.grow()
    await world.heal()
    await world.cloud.order("build_and_run_instance", instance=request)
    world.asked[UUID(request["uuid"])] = {"active"}
    await world.delete(guest)
    await world.hold()


async def _upload(world: World, directory: Path) -> str:
    path = directory / "image.raw"
    await asyncio.to_thread(path.write_bytes, os.urandom(MIB) * _IMAGE_MIB)
    return str(await world.cloud.upload(path, disk_format="raw"))
