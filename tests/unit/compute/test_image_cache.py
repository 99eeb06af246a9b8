# ruff: noqa: ASYNC240 - a test may block its own loop for a moment
import asyncio
import errno
import hashlib
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sev_agent.compute import image_cache
from sev_agent.compute.image_cache import CachedImage, ImageCache
from sev_agent.compute.image_download import IncomingFile
from sev_agent.compute.image_inspection import ImageError
from sev_agent.config import ImagesSection
from sev_agent.openstack.glance import Image
from sev_agent.sev.image_form import DiskFormat
from sev_agent.sev.refusals import RequestRefused
from tests.images import MIB, MemorySource, make_qcow2


def _raw(letter: str, size: int = MIB) -> bytes:
    return letter.encode() * size


@pytest.fixture
def source() -> MemorySource:
    return MemorySource()


@pytest.fixture
def in_use() -> set[Path]:
    return set()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "images"


Make = Callable[..., ImageCache]


@pytest.fixture
def make(directory: Path, source: MemorySource, in_use: set[Path]) -> Make:
    def make(**settings: Any) -> ImageCache:
        return ImageCache(directory, source, ImagesSection(**settings), in_use=lambda: set(in_use))

    directory.mkdir()
    return make


@pytest.fixture
def cache(make: Make) -> ImageCache:
    return make()


@pytest.fixture
def megabytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache's bound counts MiB, so that a test need not write GiB."""
    monkeypatch.setattr(image_cache, "GIB", MIB)


async def _fetch(cache: ImageCache, image: Image) -> CachedImage:
    async with cache.acquire(image) as cached:
        return cached


def _left(cache: ImageCache) -> list[str]:
    return _files(cache._directory)


def _files(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if not path.name.endswith(".used"))


async def test_first_use_downloads_and_the_second_does_not(
    cache: ImageCache, source: MemorySource, tmp_path: Path, directory: Path
) -> None:
    """An image is downloaded once, judged, and kept under its identifier and hash, readable and not writable."""
    image = source.add(make_qcow2(tmp_path / "image").read_bytes())
    first, second = await _fetch(cache, image), await _fetch(cache, image)
    assert first == second
    assert (first.format, first.virtual_size) == (DiskFormat.QCOW2, 64 * MIB)
    assert first.path.read_bytes() == source.contents[image.id]
    assert first.path.name == f"{image.id}-{str(image.os_hash_value)[:32]}.qcow2"
    assert stat.S_IMODE(first.path.stat().st_mode) == 0o444
    assert _files(directory) == [first.path.name]
    assert source.downloads == 1


async def test_survives_the_daemon(make: Make, source: MemorySource) -> None:
    """A new cache over the same directory knows the images of the old one."""
    image = source.add(_raw("a"), disk_format="raw")
    first = await _fetch(make(), image)
    assert await _fetch(make(), image) == first
    assert source.downloads == 1


async def test_twenty_at_once_share_one_download(cache: ImageCache, source: MemorySource) -> None:
    """Builds of the same image wait for the same download."""
    image = source.add(_raw("a"), disk_format="raw")
    found = await asyncio.gather(*(_fetch(cache, image) for _ in range(20)))
    assert len(set(found)) == 1
    assert source.downloads == 1


async def test_cancelled_leader_leaves_the_download_to_the_others(cache: ImageCache, source: MemorySource) -> None:
    """The first to ask can be cancelled; those who joined it still get the image, by the same download."""
    image = source.add(_raw("a"), disk_format="raw")
    source.gate.clear()
    leader, *followers = [asyncio.create_task(_fetch(cache, image)) for _ in range(5)]
    await source.started.wait()
    leader.cancel()
    await asyncio.wait({leader})
    assert leader.cancelled()
    source.gate.set()
    async with asyncio.timeout(10):
        found = await asyncio.gather(*followers)
    assert found[0].path.exists()
    assert source.downloads == 1


async def test_download_ends_with_the_last_who_waits(cache: ImageCache, source: MemorySource, directory: Path) -> None:
    """When all who wait are cancelled, the download is given up, and nothing of it is left."""
    image = source.add(_raw("a"), disk_format="raw")
    source.gate.clear()
    tasks = {asyncio.create_task(_fetch(cache, image)) for _ in range(3)}
    await source.started.wait()
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    assert all(task.cancelled() for task in tasks)
    assert _files(directory) == []
    assert source.abandoned == 1


async def test_newcomer_does_not_join_a_download_that_is_given_up(
    cache: ImageCache, source: MemorySource, directory: Path
) -> None:
    """Whoever asks in the moment of giving up gets a download of its own."""
    image = source.add(_raw("a"), disk_format="raw")
    source.gate.clear()
    first = asyncio.create_task(_fetch(cache, image))
    await source.started.wait()
    first.cancel()
    second = asyncio.create_task(_fetch(cache, image))
    source.gate.set()
    async with asyncio.timeout(10):
        found = await second
    assert first.cancelled()
    assert found.path.read_bytes() == source.contents[image.id]
    assert _files(directory) == [found.path.name]


async def test_failure_reaches_all_who_wait_and_is_not_remembered(
    cache: ImageCache, source: MemorySource, directory: Path
) -> None:
    """A failed download fails each build that waits for it; the next build tries again."""
    content = _raw("a")
    image = source.add(content, disk_format="raw")
    source.contents[image.id] = _raw("b")
    found = await asyncio.gather(*(_fetch(cache, image) for _ in range(3)), return_exceptions=True)
    assert [getattr(error, "code", None) for error in found] == ["image.hash_mismatch"] * 3
    assert _files(directory) == []
    source.contents[image.id] = content
    assert (await _fetch(cache, image)).path.read_bytes() == content


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"os_hash_value": "0" * 128}, "image.hash_mismatch"),
        ({"os_hash_algo": None, "checksum": "0" * 32}, "image.hash_mismatch"),
        ({"os_hash_algo": "crc32", "checksum": None}, "image.no_hash"),
        ({"os_hash_value": None, "checksum": None}, "image.no_hash"),
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
    image = source.add(_raw("a"), **{"disk_format": "raw", **changes})
    with pytest.raises((ImageError, RequestRefused)) as caught:
        await _fetch(cache, image)
    assert caught.value.code == code
    assert caught.value.remedy
    assert _files(directory) == []


@pytest.mark.parametrize("algorithm", ["sha256", "sha384", "sha512", "md5"])
async def test_every_hash_that_is_trusted(cache: ImageCache, source: MemorySource, algorithm: str) -> None:
    """SHA-2 is verified by its name; MD5 where Glance knows nothing else. Upper case is no difference."""
    content = _raw("a")
    digest = hashlib.new(algorithm, content, usedforsecurity=False).hexdigest().upper()
    known = {"os_hash_algo": None, "checksum": digest}
    if algorithm != "md5":
        known = {"os_hash_algo": algorithm, "os_hash_value": digest, "checksum": None}
    assert (await _fetch(cache, source.add(content, disk_format="raw", **known))).path.exists()


async def test_unknown_size(cache: ImageCache, source: MemorySource) -> None:
    """An image of which Glance does not tell the size is taken as it comes."""
    image = source.add(_raw("a"), disk_format="raw", size=None)
    assert (await _fetch(cache, image)).virtual_size == MIB


async def test_download_that_takes_too_long(make: Make, source: MemorySource, directory: Path) -> None:
    """A download has a time limit; at its end nothing is left, and the error may be tried again."""
    image = source.add(_raw("a"), disk_format="raw")
    source.gate.clear()
    with pytest.raises(image_cache.ImageDownloadTimeout) as caught:
        await _fetch(make(download_timeout=0.2), image)
    assert caught.value.retryable
    assert _files(directory) == []


async def test_the_sources_own_error_comes_through(cache: ImageCache, source: MemorySource, directory: Path) -> None:
    """What the source raises is not disguised."""
    image = source.add(_raw("a"), disk_format="raw")
    del source.contents[image.id]
    with pytest.raises(KeyError):
        await _fetch(cache, image)
    assert _files(directory) == []


async def test_start_cleans_what_a_crash_left(cache: ImageCache, source: MemorySource, directory: Path) -> None:
    """Unfinished downloads are removed at start; images stay; the directory can be traversed by QEMU's user."""
    found = await _fetch(cache, source.add(_raw("a"), disk_format="raw"))
    (directory / ".incoming-x").write_bytes(b"half")
    directory.chmod(0o700)
    await cache.prepare()
    assert _files(directory) == [found.path.name]
    assert stat.S_IMODE(directory.stat().st_mode) == 0o755


async def test_damaged_file_is_replaced(cache: ImageCache, source: MemorySource, tmp_path: Path) -> None:
    """A cached file that lost its header, by a broken disk say, is downloaded again."""
    image = source.add(make_qcow2(tmp_path / "image").read_bytes())
    found = await _fetch(cache, image)
    found.path.chmod(0o644)
    found.path.write_bytes(b"")
    assert (await _fetch(cache, image)).path.read_bytes() == source.contents[image.id]


@pytest.mark.parametrize("call", ["_open", "_append", "_seal", "_publish"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
async def test_full_disk_at_every_step(
    cache: ImageCache, source: MemorySource, monkeypatch: pytest.MonkeyPatch, *, call: str, number: int
) -> None:
    """A disk that fills up at any moment of a download is named as such, and nothing is left on it."""

    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(IncomingFile, call, fail)
    with pytest.raises(image_cache.ImageNoSpace, match="free space") as caught:
        await _fetch(cache, source.add(_raw("a"), disk_format="raw"))
    assert caught.value.retryable
    assert source.downloads <= 1
    assert _left(cache) == []


async def test_too_little_space_is_seen_before_the_download(
    cache: ImageCache, source: MemorySource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the size is known, nothing is downloaded that cannot fit."""
    monkeypatch.setattr(image_cache, "_free_bytes", lambda _: MIB - 1)
    with pytest.raises(image_cache.ImageNoSpace):
        await _fetch(cache, source.add(_raw("a"), disk_format="raw"))
    assert source.downloads == 0


async def test_space_is_promised_once(cache: ImageCache, source: MemorySource, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two downloads cannot both count on the same free bytes."""
    monkeypatch.setattr(image_cache, "_free_bytes", lambda _: MIB + MIB // 2)
    source.gate.clear()
    first = asyncio.create_task(_fetch(cache, source.add(_raw("a"), disk_format="raw")))
    await source.started.wait()
    with pytest.raises(image_cache.ImageNoSpace):
        await _fetch(cache, source.add(_raw("b"), disk_format="raw"))
    source.gate.set()
    await first


async def test_a_finished_image_is_counted_once(
    make: Make, source: MemorySource, megabytes: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the moment between its rename and the end of its download, an image does not count twice."""
    cache = make(cache_max_gb=2)
    discard, entered, go_on = IncomingFile._discard, threading.Event(), threading.Event()

    def slow(file: IncomingFile) -> None:
        entered.set()
        assert go_on.wait(10)
        discard(file)

    monkeypatch.setattr(IncomingFile, "_discard", slow)
    first = asyncio.create_task(_fetch(cache, source.add(_raw("a"), disk_format="raw")))
    assert await asyncio.to_thread(entered.wait, 10)
    monkeypatch.undo()
    monkeypatch.setattr(image_cache, "GIB", MIB)
    second = await _fetch(cache, source.add(_raw("b"), disk_format="raw"))
    go_on.set()
    assert (await first).path.exists()
    assert second.path.exists()


async def test_longest_unused_goes_first(make: Make, source: MemorySource, megabytes: None, directory: Path) -> None:
    """Where room is needed, images leave in the order of their last use, not of their download."""
    cache = make(cache_max_gb=3)
    a, b, c = [source.add(_raw(letter), disk_format="raw") for letter in "abc"]
    paths = [(await _fetch(cache, image)).path for image in (a, b, c)]
    await _fetch(cache, a)
    fourth = await _fetch(cache, source.add(_raw("d"), disk_format="raw"))
    assert _files(directory) == sorted(path.name for path in (paths[0], paths[2], fourth.path))
    fifth = await _fetch(cache, source.add(_raw("e", 2 * MIB), disk_format="raw"))
    assert _files(directory) == sorted(path.name for path in (fourth.path, fifth.path))
    assert not list(directory.glob(f".{paths[0].name}*")), "the mark of use goes with the image"


async def test_last_use_survives_a_restart(make: Make, source: MemorySource, megabytes: None) -> None:
    """A restarted daemon still knows which image was used last."""
    a, b = [source.add(_raw(letter), disk_format="raw") for letter in "ab"]
    paths = [(await _fetch(make(cache_max_gb=2), image)).path for image in (a, b, a)]
    await _fetch(make(cache_max_gb=2), source.add(_raw("c"), disk_format="raw"))
    assert [path.exists() for path in paths] == [True, False, True]


async def test_lack_of_free_space_evicts_too(
    make: Make, source: MemorySource, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a full disk unused images make room, though the cache is within its bound."""
    cache = make(cache_max_gb=100)
    old = await _fetch(cache, source.add(_raw("a"), disk_format="raw"))
    monkeypatch.setattr(image_cache, "_free_bytes", lambda _: 10 * MIB if not old.path.exists() else 0)
    new = await _fetch(cache, source.add(_raw("b"), disk_format="raw"))
    assert _files(directory) == [new.path.name]


async def test_a_base_in_use_is_never_evicted(
    make: Make, source: MemorySource, megabytes: None, in_use: set[Path]
) -> None:
    """An image under an instance's disk stays; where only such images are left, the new one is refused."""
    cache = make(cache_max_gb=2)
    base = (await _fetch(cache, source.add(_raw("a"), disk_format="raw"))).path
    other = (await _fetch(cache, source.add(_raw("b"), disk_format="raw"))).path
    in_use.add(base)
    third = (await _fetch(cache, source.add(_raw("c"), disk_format="raw"))).path
    assert (base.exists(), other.exists()) == (True, False)
    in_use.add(third)
    with pytest.raises(image_cache.ImageCacheFull, match="cache_max_gb") as caught:
        await _fetch(cache, source.add(_raw("d"), disk_format="raw"))
    assert caught.value.retryable
    assert base.exists()
    assert third.exists()


async def test_an_acquired_image_is_never_evicted(make: Make, source: MemorySource, megabytes: None) -> None:
    """As long as a build holds an image, it stays."""
    cache = make(cache_max_gb=1)
    other = source.add(_raw("b"), disk_format="raw")
    async with cache.acquire(source.add(_raw("a"), disk_format="raw")) as held:
        with pytest.raises(image_cache.ImageCacheFull):
            await _fetch(cache, other)
        assert held.path.exists()
    await _fetch(cache, other)
    assert not held.path.exists()


async def test_an_image_given_back_during_the_search_for_users_stays(
    directory: Path, source: MemorySource, megabytes: None
) -> None:
    """A disk that was made while the search for users ran may not have been seen: its base is kept."""
    loop = asyncio.get_running_loop()
    armed = directory / ".armed"
    old = source.add(_raw("a"), disk_format="raw")

    def search() -> set[Path]:
        if armed.exists():  # a whole build, from acquiring to giving back, while the thread looks around
            asyncio.run_coroutine_threadsafe(_fetch(searched, old), loop).result(10)
        return set()

    directory.mkdir()
    searched = ImageCache(directory, source, ImagesSection(cache_max_gb=1), in_use=search)
    base = (await _fetch(searched, old)).path
    armed.touch()
    with pytest.raises(image_cache.ImageCacheFull):
        await _fetch(searched, source.add(_raw("b"), disk_format="raw"))
    assert base.exists()


async def test_an_unknown_size_cannot_pass_the_bound(
    make: Make, source: MemorySource, megabytes: None, directory: Path
) -> None:
    """A stream that does not end is cut at the cache's bound."""
    with pytest.raises(image_cache.ImageCacheFull):
        await _fetch(make(cache_max_gb=1), source.add(_raw("a", 3 * MIB), disk_format="raw", size=None))
    assert _files(directory) == []


async def test_many_images_many_builds_some_cancelled(
    make: Make, source: MemorySource, megabytes: None, directory: Path
) -> None:
    """Under load, with cancellations and evictions, a build gets its image or a refusal, and the bound holds."""
    cache = make(cache_max_gb=4)
    images = [source.add(_raw(letter), disk_format="raw") for letter in "abcdef"]

    async def build(index: int) -> None:
        image = images[index % len(images)]
        async with cache.acquire(image) as cached:
            await asyncio.sleep(0)
            assert cached.path.read_bytes() == source.contents[image.id]

    tasks = [asyncio.create_task(build(index)) for index in range(120)]
    for index, task in enumerate(tasks):
        await asyncio.sleep(0.002)
        if index % 3 == 0:
            task.cancel()
    async with asyncio.timeout(60):
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    refusals = [outcome for outcome in outcomes if isinstance(outcome, Exception)]
    assert {type(refusal) for refusal in refusals} <= {image_cache.ImageCacheFull}
    assert None in outcomes
    assert len(_files(directory)) <= 4
    assert not list(directory.glob(".incoming-*"))
    for index in range(12):
        await build(index)
