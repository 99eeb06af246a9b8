"""The disk of the lab's host: a file system of its own, whose size a test can change."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.cloud import run

_SIZE = 64 * 1024**3
"""Bytes. None of it is taken before it is written; Placement is told of it in whole GiB."""


@contextlib.asynccontextmanager
async def small_disk(directory: Path) -> AsyncIterator[None]:
    """A file system in memory at the state directory of the first host of the lab at ``directory``.

    Mounted before the host's namespace is made, which would not see it otherwise.
    """
    state = directory / "hosts/compute-1/agent"
    await asyncio.to_thread(state.mkdir, parents=True)
    await _mount("-t", "tmpfs", "-o", f"size={_SIZE}", "tmpfs", str(state))
    try:
        yield
    finally:
        done = await run("umount", str(state))
        assert done.status == 0, done.errors


@dataclass(frozen=True)
class Disk:
    """The file system at ``path``. Sizes are bytes."""

    path: Path

    async def leave(self, free: int) -> None:
        """Make it so small that only ``free`` bytes can still be written, to the page."""
        status = os.statvfs(self.path)
        used = (status.f_blocks - status.f_bfree) * status.f_frsize
        await _mount("-o", f"remount,size={used + free}", str(self.path))

    async def grow(self) -> None:
        """Give it its room again."""
        await _mount("-o", f"remount,size={_SIZE}", str(self.path))


async def _mount(*arguments: str) -> None:
    done = await run("mount", *arguments)
    assert done.status == 0, done.errors
