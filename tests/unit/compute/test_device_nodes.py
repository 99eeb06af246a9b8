"""Device nodes that come and go are told by the kernel."""

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sev_agent.compute import device_nodes
from sev_agent.compute.device_nodes import DeviceNodes


class Rings:
    """How often it was told, and the next time."""

    def __init__(self) -> None:
        self._told: asyncio.Queue[None] = asyncio.Queue()

    def ring(self) -> None:
        self._told.put_nowait(None)

    async def next(self) -> None:
        async with asyncio.timeout(60):
            await self._told.get()

    @property
    def silent(self) -> bool:
        return self._told.empty()


@contextlib.asynccontextmanager
async def watching(directory: Path, rings: Rings) -> AsyncIterator[None]:
    task = asyncio.create_task(DeviceNodes(directory, ("sev", "kvm"), on_change=rings.ring).run())
    yield
    task.cancel()
    await asyncio.wait({task})


async def test_comes_and_goes(tmp_path: Path) -> None:
    """Each of the names is told when it appears, is renamed or vanishes; no other name is."""
    rings = Rings()
    async with watching(tmp_path, rings):
        await rings.next()
        for name in ("random", "sev0", "kvm-other"):
            (tmp_path / name).touch()
        (tmp_path / "sev").touch()
        await rings.next()
        (tmp_path / "sev").unlink()
        await rings.next()
        (tmp_path / "new").touch()
        (tmp_path / "new").rename(tmp_path / "kvm")
        await rings.next()
        (tmp_path / "kvm").rename(tmp_path / "old")
        await rings.next()
        assert rings.silent


async def test_a_directory_that_comes_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory that is not there yet, or is made anew, is watched when it is there, and told as a change."""
    monkeypatch.setattr(device_nodes, "_AGAIN_SECONDS", 0.01)
    rings, devices = Rings(), tmp_path / "dev"
    async with watching(devices, rings):
        await asyncio.sleep(0)
        for _ in range(2):
            devices.mkdir()
            await rings.next()
            (devices / "sev").touch()
            await rings.next()
            shutil.rmtree(devices)
            await rings.next()
        assert rings.silent
