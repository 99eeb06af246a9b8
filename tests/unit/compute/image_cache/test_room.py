"""How the cache makes room, and what it never gives up for it."""

# ruff: noqa: ASYNC240 - a test may block its own loop for a moment
import asyncio
import errno
import os
import threading
from pathlib import Path

import pytest

from sev_agent.compute import image_cache
from sev_agent.compute.image_cache import ImageCache
from sev_agent.compute.image_download import IncomingFile
from sev_agent.config import ImagesSection
from tests.images import MIB, MemorySource
from tests.unit.compute.image_cache.conftest import Make, fetch, files, left, raw


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
        await fetch(cache, source.add(raw("a"), disk_format="raw"))
    assert caught.value.retryable
    assert source.downloads <= 1
    assert left(cache) == []


async def test_too_little_space_is_seen_before_the_download(
    cache: ImageCache, source: MemorySource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the size is known, nothing is downloaded that cannot fit."""
    monkeypatch.setattr(image_cache, "_free_bytes", lambda _: MIB - 1)
    with pytest.raises(image_cache.ImageNoSpace):
        await fetch(cache, source.add(raw("a"), disk_format="raw"))
    assert source.downloads == 0


async def test_space_is_promised_once(cache: ImageCache, source: MemorySource, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two downloads cannot both count on the same free bytes."""
    monkeypatch.setattr(image_cache, "_free_bytes", lambda _: MIB + MIB // 2)
    source.gate.clear()
    first = asyncio.create_task(fetch(cache, source.add(raw("a"), disk_format="raw")))
    await source.started.wait()
    with pytest.raises(image_cache.ImageNoSpace):
        await fetch(cache, source.add(raw("b"), disk_format="raw"))
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
    first = asyncio.create_task(fetch(cache, source.add(raw("a"), disk_format="raw")))
    assert await asyncio.to_thread(entered.wait, 10)
    monkeypatch.undo()
    monkeypatch.setattr(image_cache, "GIB", MIB)
    second = await fetch(cache, source.add(raw("b"), disk_format="raw"))
    go_on.set()
    assert (await first).path.exists()
    assert second.path.exists()


async def test_longest_unused_goes_first(make: Make, source: MemorySource, megabytes: None, directory: Path) -> None:
    """Where room is needed, images leave in the order of their last use, not of their download."""
    cache = make(cache_max_gb=3)
    a, b, c = [source.add(raw(letter), disk_format="raw") for letter in "abc"]
    paths = [(await fetch(cache, image)).path for image in (a, b, c)]
    await fetch(cache, a)
    fourth = await fetch(cache, source.add(raw("d"), disk_format="raw"))
    assert files(directory) == sorted(path.name for path in (paths[0], paths[2], fourth.path))
    fifth = await fetch(cache, source.add(raw("e", 2 * MIB), disk_format="raw"))
    assert files(directory) == sorted(path.name for path in (fourth.path, fifth.path))
    assert not list(directory.glob(f".{paths[0].name}*")), "the mark of use goes with the image"


async def test_last_use_survives_a_restart(make: Make, source: MemorySource, megabytes: None) -> None:
    """A restarted daemon still knows which image was used last."""
    a, b = [source.add(raw(letter), disk_format="raw") for letter in "ab"]
    paths = [(await fetch(make(cache_max_gb=2), image)).path for image in (a, b, a)]
    await fetch(make(cache_max_gb=2), source.add(raw("c"), disk_format="raw"))
    assert [path.exists() for path in paths] == [True, False, True]


async def test_lack_of_free_space_evicts_too(
    make: Make, source: MemorySource, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a full disk unused images make room, though the cache is within its bound."""
    cache = make(cache_max_gb=100)
    old = await fetch(cache, source.add(raw("a"), disk_format="raw"))
    monkeypatch.setattr(image_cache, "_free_bytes", lambda _: 10 * MIB if not old.path.exists() else 0)
    new = await fetch(cache, source.add(raw("b"), disk_format="raw"))
    assert files(directory) == [new.path.name]


async def test_a_base_in_use_is_never_evicted(
    make: Make, source: MemorySource, megabytes: None, in_use: set[Path]
) -> None:
    """An image under an instance's disk stays; where only such images are left, the new one is refused."""
    cache = make(cache_max_gb=2)
    base = (await fetch(cache, source.add(raw("a"), disk_format="raw"))).path
    other = (await fetch(cache, source.add(raw("b"), disk_format="raw"))).path
    in_use.add(base)
    third = (await fetch(cache, source.add(raw("c"), disk_format="raw"))).path
    assert (base.exists(), other.exists()) == (True, False)
    in_use.add(third)
    with pytest.raises(image_cache.ImageCacheFull, match="cache_max_gb") as caught:
        await fetch(cache, source.add(raw("d"), disk_format="raw"))
    assert caught.value.retryable
    assert base.exists()
    assert third.exists()


async def test_an_acquired_image_is_never_evicted(make: Make, source: MemorySource, megabytes: None) -> None:
    """As long as a build holds an image, it stays."""
    cache = make(cache_max_gb=1)
    other = source.add(raw("b"), disk_format="raw")
    async with cache.acquire(source.add(raw("a"), disk_format="raw")) as held:
        with pytest.raises(image_cache.ImageCacheFull):
            await fetch(cache, other)
        assert held.path.exists()
    await fetch(cache, other)
    assert not held.path.exists()


async def test_an_image_given_back_during_the_search_for_users_stays(
    directory: Path, source: MemorySource, megabytes: None
) -> None:
    """A disk that was made while the search for users ran may not have been seen: its base is kept."""
    loop = asyncio.get_running_loop()
    armed = directory / ".armed"
    old = source.add(raw("a"), disk_format="raw")

    def search() -> set[Path]:
        if armed.exists():  # a whole build, from acquiring to giving back, while the thread looks around
            asyncio.run_coroutine_threadsafe(fetch(searched, old), loop).result(10)
        return set()

    directory.mkdir()
    searched = ImageCache(directory, source, ImagesSection(cache_max_gb=1), in_use=search)
    base = (await fetch(searched, old)).path
    armed.touch()
    with pytest.raises(image_cache.ImageCacheFull):
        await fetch(searched, source.add(raw("b"), disk_format="raw"))
    assert base.exists()


async def test_an_unknown_size_cannot_pass_the_bound(
    make: Make, source: MemorySource, megabytes: None, directory: Path
) -> None:
    """A stream that does not end is cut at the cache's bound."""
    with pytest.raises(image_cache.ImageCacheFull):
        await fetch(make(cache_max_gb=1), source.add(raw("a", 3 * MIB), disk_format="raw", size=None))
    assert files(directory) == []


async def test_many_images_many_builds_some_cancelled(
    make: Make, source: MemorySource, megabytes: None, directory: Path
) -> None:
    """Under load, with cancellations and evictions, a build gets its image or a refusal, and the bound holds."""
    cache = make(cache_max_gb=4)
    images = [source.add(raw(letter), disk_format="raw") for letter in "abcdef"]

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
    assert len(files(directory)) <= 4
    assert not list(directory.glob(".incoming-*"))
    for index in range(12):
        await build(index)
