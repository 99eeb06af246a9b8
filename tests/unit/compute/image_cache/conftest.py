"""A cache of images over a source that does as a test tells it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sev_agent.compute import image_cache
from sev_agent.compute.image_cache import CachedImage, ImageCache
from sev_agent.config import ImagesSection
from sev_agent.openstack.glance import Image
from tests.images import MIB, MemorySource


def raw(letter: str, size: int = MIB) -> bytes:
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


async def fetch(cache: ImageCache, image: Image) -> CachedImage:
    async with cache.acquire(image) as cached:
        return cached


def left(cache: ImageCache) -> list[str]:
    return files(cache._directory)


def files(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if not path.name.endswith(".used"))
