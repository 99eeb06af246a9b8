"""Who downloads an image, who shares a download, and what never enters the cache."""

# ruff: noqa: ASYNC240 - a test may block its own loop for a moment
import asyncio
import hashlib
import stat
from pathlib import Path
from typing import Any

import pytest

from sev_agent.compute import image_cache
from sev_agent.compute.image_cache import ImageCache
from sev_agent.compute.image_inspection import ImageError
from sev_agent.sev.image_form import DiskFormat
from sev_agent.sev.refusals import RequestRefused
from tests.images import MIB, MemorySource, make_qcow2
from tests.unit.compute.image_cache.conftest import Make, fetch, files, raw


async def test_first_use_downloads_and_the_second_does_not(
    cache: ImageCache, source: MemorySource, tmp_path: Path, directory: Path
) -> None:
    """An image is downloaded once, judged, and kept under its identifier and hash, readable and not writable."""
    image = source.add(make_qcow2(tmp_path / "image").read_bytes())
    first, second = await fetch(cache, image), await fetch(cache, image)
    assert first == second
    assert (first.format, first.virtual_size) == (DiskFormat.QCOW2, 64 * MIB)
    assert first.path.read_bytes() == source.contents[image.id]
    assert first.path.name == f"{image.id}-{str(image.os_hash_value)[:32]}.qcow2"
    assert stat.S_IMODE(first.path.stat().st_mode) == 0o444
    assert files(directory) == [first.path.name]
    assert source.downloads == 1


async def test_survives_the_daemon(make: Make, source: MemorySource) -> None:
    """A new cache over the same directory knows the images of the old one."""
    image = source.add(raw("a"), disk_format="raw")
    first = await fetch(make(), image)
    assert await fetch(make(), image) == first
    assert source.downloads == 1


async def test_twenty_at_once_share_one_download(cache: ImageCache, source: MemorySource) -> None:
    """Builds of the same image wait for the same download."""
    image = source.add(raw("a"), disk_format="raw")
    found = await asyncio.gather(*(fetch(cache, image) for _ in range(20)))
    assert len(set(found)) == 1
    assert source.downloads == 1


async def test_cancelled_leader_leaves_the_download_to_the_others(cache: ImageCache, source: MemorySource) -> None:
    """The first to ask can be cancelled; those who joined it still get the image, by the same download."""
    image = source.add(raw("a"), disk_format="raw")
    source.gate.clear()
    leader, *followers = [asyncio.create_task(fetch(cache, image)) for _ in range(5)]
    await source.started.wait()
    leader.cancel()
    await asyncio.wait({leader})
    assert leader.cancelled()
    source.gate.set()
    async with asyncio.timeout(60):
        found = await asyncio.gather(*followers)
    assert found[0].path.exists()
    assert source.downloads == 1


async def test_download_ends_with_the_last_who_waits(cache: ImageCache, source: MemorySource, directory: Path) -> None:
    """When all who wait are cancelled, the download is given up, and nothing of it is left."""
    image = source.add(raw("a"), disk_format="raw")
    source.gate.clear()
    tasks = {asyncio.create_task(fetch(cache, image)) for _ in range(3)}
    await source.started.wait()
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    assert all(task.cancelled() for task in tasks)
    assert files(directory) == []
    assert source.abandoned == 1


async def test_newcomer_does_not_join_a_download_that_is_given_up(
    cache: ImageCache, source: MemorySource, directory: Path
) -> None:
    """Whoever asks in the moment of giving up gets a download of its own."""
    image = source.add(raw("a"), disk_format="raw")
    source.gate.clear()
    first = asyncio.create_task(fetch(cache, image))
    await source.started.wait()
    first.cancel()
    second = asyncio.create_task(fetch(cache, image))
    source.gate.set()
    async with asyncio.timeout(60):
        found = await second
    assert first.cancelled()
    assert found.path.read_bytes() == source.contents[image.id]
    assert files(directory) == [found.path.name]


async def test_failure_reaches_all_who_wait_and_is_not_remembered(
    cache: ImageCache, source: MemorySource, directory: Path
) -> None:
    """A failed download fails each build that waits for it; the next build tries again."""
    content = raw("a")
    image = source.add(content, disk_format="raw")
    source.contents[image.id] = raw("b")
    found = await asyncio.gather(*(fetch(cache, image) for _ in range(3)), return_exceptions=True)
    assert [getattr(error, "code", None) for error in found] == ["image.hash_mismatch"] * 3
    assert files(directory) == []
    source.contents[image.id] = content
    assert (await fetch(cache, image)).path.read_bytes() == content


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"os_hash_value": "0" * 128}, "image.hash_mismatch"),
        ({"os_hash_algo": None, "checksum": "0" * 32}, "image.hash_mismatch"),
        ({"os_hash_algo": "crc32", "checksum": None}, "image.no_hash"),
        ({"os_hash_value": None, "checksum": None}, "image.no_hash"),
        ({"os_hash_value": "/../" * 32}, "image.no_hash"),
        ({"os_hash_value": "0" * 31 + "\0"}, "image.no_hash"),
        ({"size": MIB - 1}, "image.hash_mismatch"),
        ({"size": 0}, "image.hash_mismatch"),
        ({"disk_format": "qcow2"}, "image.format_mismatch"),
        ({"disk_format": "vhd"}, "image.format_unsupported"),
    ],
)
async def test_refused_and_nothing_left(
    cache: ImageCache, source: MemorySource, directory: Path, changes: dict[str, Any], code: str
) -> None:
    """What cannot be verified, or is not what it says, never enters the cache."""
    image = source.add(raw("a"), **{"disk_format": "raw", **changes})
    with pytest.raises((ImageError, RequestRefused)) as caught:
        await fetch(cache, image)
    assert caught.value.code == code
    assert caught.value.remedy
    assert files(directory) == []


@pytest.mark.parametrize("algorithm", ["sha256", "sha384", "sha512", "md5"])
async def test_every_hash_that_is_trusted(cache: ImageCache, source: MemorySource, algorithm: str) -> None:
    """SHA-2 is verified by its name; MD5 where Glance knows nothing else. Upper case is no difference."""
    content = raw("a")
    digest = hashlib.new(algorithm, content, usedforsecurity=False).hexdigest().upper()
    known = {"os_hash_algo": None, "checksum": digest}
    if algorithm != "md5":
        known = {"os_hash_algo": algorithm, "os_hash_value": digest, "checksum": None}
    assert (await fetch(cache, source.add(content, disk_format="raw", **known))).path.exists()


async def test_unknown_size(cache: ImageCache, source: MemorySource) -> None:
    """An image of which Glance does not tell the size is taken as it comes."""
    image = source.add(raw("a"), disk_format="raw", size=None)
    assert (await fetch(cache, image)).virtual_size == MIB


async def test_download_that_takes_too_long(make: Make, source: MemorySource, directory: Path) -> None:
    """A download has a time limit; at its end nothing is left, and the error may be tried again."""
    image = source.add(raw("a"), disk_format="raw")
    source.gate.clear()
    with pytest.raises(image_cache.ImageDownloadTimeout) as caught:
        await fetch(make(download_timeout=0.2), image)
    assert caught.value.retryable
    assert files(directory) == []


async def test_the_sources_own_error_comes_through(cache: ImageCache, source: MemorySource, directory: Path) -> None:
    """What the source raises is not disguised."""
    image = source.add(raw("a"), disk_format="raw")
    del source.contents[image.id]
    with pytest.raises(KeyError):
        await fetch(cache, image)
    assert files(directory) == []


async def test_start_cleans_what_a_crash_left(cache: ImageCache, source: MemorySource, directory: Path) -> None:
    """Unfinished downloads are removed at start; images stay; the directory can be traversed by QEMU's user."""
    found = await fetch(cache, source.add(raw("a"), disk_format="raw"))
    (directory / ".incoming-x").write_bytes(b"half")
    directory.chmod(0o700)
    await cache.prepare()
    assert files(directory) == [found.path.name]
    assert stat.S_IMODE(directory.stat().st_mode) == 0o755


async def test_damaged_file_is_replaced(cache: ImageCache, source: MemorySource, tmp_path: Path) -> None:
    """A cached file that lost its header, by a broken disk say, is downloaded again."""
    image = source.add(make_qcow2(tmp_path / "image").read_bytes())
    found = await fetch(cache, image)
    found.path.chmod(0o644)
    found.path.write_bytes(b"")
    assert (await fetch(cache, image)).path.read_bytes() == source.contents[image.id]
