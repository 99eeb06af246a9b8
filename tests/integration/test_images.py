# ruff: noqa: ASYNC240 - a test may block its own loop for a moment
"""The image cache on a real file system that is really full, and with an image that would not fit into memory."""

import asyncio
import contextlib
import hashlib
import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from sev_agent.compute.disk import DiskFailed, create_disk
from sev_agent.compute.image_cache import CachedImage, ImageCache, ImageNoSpace
from sev_agent.config import ImagesSection
from sev_agent.openstack.glance import Image
from sev_agent.sev.image_form import DiskFormat
from tests.images import MIB, SETTINGS, MemorySource, describe, make_qcow2

LARGE = 512 * MIB


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    path = tmp_path / "disk"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(path)], check=True)  # noqa: S607
    try:
        yield path
    finally:
        subprocess.run(["umount", str(path)], check=True)  # noqa: S607


def _fill(disk: Path) -> None:
    with (disk / "other").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


class Greedy(MemorySource):
    """After the first chunk, another program fills the disk."""

    def __init__(self, disk: Path) -> None:
        super().__init__()
        self._disk = disk

    async def _chunks(self, content: bytes) -> AsyncIterator[bytes]:
        first = True
        async for chunk in super()._chunks(content):
            yield chunk
            if first:
                await asyncio.to_thread(_fill, self._disk)
            first = False


async def test_disk_fills_up_during_the_download(small_disk: Path) -> None:
    """The error names the disk, nothing of the image is left, and once there is space the same request succeeds."""
    source = Greedy(small_disk)
    image = source.add(os.urandom(4 * MIB), disk_format="raw")
    cache = ImageCache(small_disk / "images", source, SETTINGS, in_use=set)
    await cache.prepare()
    with pytest.raises(ImageNoSpace, match=f"{small_disk}/images has no space"):
        async with cache.acquire(image):
            pass
    assert list((small_disk / "images").iterdir()) == []
    (small_disk / "other").unlink()
    patient = ImageCache(small_disk / "images", MemorySource(), SETTINGS, in_use=set)
    patient._source.contents = source.contents  # type: ignore[attr-defined]
    async with patient.acquire(image) as cached:
        assert cached.path.read_bytes() == source.contents[image.id]


async def test_disk_too_small_for_the_overlay(small_disk: Path, tmp_path: Path) -> None:
    """A root disk that cannot be made leaves nothing, and says what is missing."""
    _fill(small_disk)
    base = CachedImage(make_qcow2(tmp_path / "base"), DiskFormat.QCOW2, 64 * MIB)
    with pytest.raises(DiskFailed, match="No space left"):
        await create_disk(small_disk / "root", base, 1)
    assert [path.name for path in small_disk.iterdir()] == ["other"]


class Large:
    """One image, larger than what a daemon may take of memory, made while it is sent."""

    def __init__(self) -> None:
        self.peak = 0

    @asynccontextmanager
    async def download(
        self, image: Image, *, total_timeout: float, idle_timeout: float
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        yield self._chunks()

    async def _chunks(self) -> AsyncIterator[bytes]:
        for index in range(LARGE // MIB):
            yield bytes([index % 251]) * MIB
            self.peak = max(self.peak, _resident())


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


async def test_memory_does_not_grow_with_the_image(tmp_path: Path) -> None:
    """An image of 512 MiB costs the process at most 24 MiB while it is downloaded."""
    digest = hashlib.sha512()
    for index in range(LARGE // MIB):
        digest.update(bytes([index % 251]) * MIB)
    image = describe(disk_format="raw", size=LARGE, os_hash_value=digest.hexdigest())
    source = Large()
    cache = ImageCache(tmp_path, source, ImagesSection(), in_use=set)
    before = _resident()
    async with cache.acquire(image) as cached:
        assert cached.virtual_size == LARGE
    assert source.peak - before < 24 * MIB
