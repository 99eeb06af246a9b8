"""A disk that is full, for as long as a test wants."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from tests.e2e.cloud import run

PAGE = 4096


@contextlib.asynccontextmanager
async def full_disk(directory: Path, *, free: int) -> AsyncIterator[None]:
    """``directory`` on a file system that has room for ``free`` bytes, to the page; what was in it is back after that.

    The daemon alone sees it: libvirtd is in a namespace of its own, and nothing that a guest runs on may be made there.
    """
    await _run("mount", "-t", "tmpfs", "-o", f"size={free + PAGE}", "tmpfs", str(directory))
    try:
        (directory / ".ballast").write_bytes(bytes(PAGE))
        yield
    finally:
        # Lazily: the daemon may just have a file open there.
        await _run("umount", "--lazy", str(directory))


async def _run(*command: str) -> None:
    done = await run(*command)
    assert done.status == 0, done.errors
