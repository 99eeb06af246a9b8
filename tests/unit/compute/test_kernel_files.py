"""The kernel that an image names, on its way into the guest's directory."""

import stat
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from sev_agent.compute import kernel_files
from sev_agent.compute.image_inspection import ImageError
from sev_agent.compute.instance_files import InstanceFiles
from sev_agent.compute.kernel_files import KernelFiles, KernelNotShared, KernelTooLarge
from sev_agent.config import ImagesSection
from sev_agent.openstack.glance import Image
from sev_agent.sev.image_properties import KernelImages
from tests.images import MemorySource, describe

BOOTED = describe(b"disk", owner="tenant", visibility="private")


class KernelImageSource:
    """Images served from memory, by their identifiers."""

    def __init__(self) -> None:
        self._source = MemorySource()
        self._images: dict[UUID, Image] = {}

    @property
    def downloads(self) -> int:
        return self._source.downloads

    def add(self, content: bytes, **changes: Any) -> UUID:
        image = self._source.add(content, disk_format="aki", **changes)
        self._images[image.id] = image
        return image.id

    async def get_image(self, image_id: UUID) -> Image:
        return self._images[image_id]

    def download(
        self, image: Image, *, total_timeout: float, idle_timeout: float
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        return self._source.download(image, total_timeout=total_timeout, idle_timeout=idle_timeout)


@pytest.fixture
def source() -> KernelImageSource:
    return KernelImageSource()


@pytest.fixture
def files(tmp_path: Path) -> InstanceFiles:
    return InstanceFiles(tmp_path)


async def fetch(source: KernelImageSource, files: InstanceFiles, kernel: UUID, ramdisk: UUID | None = None) -> None:
    await KernelFiles(source, ImagesSection()).fetch(BOOTED, KernelImages(kernel=kernel, ramdisk=ramdisk), files)


async def test_both_files(source: KernelImageSource, files: InstanceFiles) -> None:
    """Kernel and RAM disk lie in the guest's directory, readable for QEMU and not writable, and nothing else does."""
    await fetch(source, files, source.add(b"kernel"), source.add(b"ramdisk"))

    assert (files.kernel.read_bytes(), files.ramdisk.read_bytes()) == (b"kernel", b"ramdisk")
    assert stat.S_IMODE(files.kernel.stat().st_mode) == 0o444
    assert sorted(path.name for path in files.directory.iterdir()) == ["kernel", "ramdisk"]


async def test_resumed(source: KernelImageSource, files: InstanceFiles) -> None:
    """What is there already is not downloaded again."""
    kernel = source.add(b"kernel")
    await fetch(source, files, kernel)
    await fetch(source, files, kernel, source.add(b"ramdisk"))

    assert source.downloads == 2


@pytest.mark.parametrize(
    ("owner", "visibility", "allowed"),
    [
        ("other", "public", True),
        ("other", "community", True),
        ("tenant", "private", True),
        ("other", "private", False),
        ("other", "shared", False),
        (None, "private", False),
    ],
)
async def test_whose_kernel(
    source: KernelImageSource,
    files: InstanceFiles,
    owner: str | None,
    visibility: str,
    allowed: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    """The daemon can read every image; a guest is given only what its own project could read."""
    kernel, ramdisk = source.add(b"kernel"), source.add(b"secret", owner=owner, visibility=visibility)

    if allowed:
        await fetch(source, files, kernel, ramdisk)
        return
    with pytest.raises(KernelNotShared) as caught:
        await fetch(source, files, kernel, ramdisk)
    assert caught.value.field == "image.properties.ramdisk_id"
    assert not files.ramdisk.exists()


async def test_damaged(source: KernelImageSource, files: InstanceFiles) -> None:
    """A kernel that is not what Glance describes is refused, and nothing of it is left."""
    kernel = source.add(b"kernel", os_hash_value="00" * 64)

    with pytest.raises(ImageError, match="sha512"):
        await fetch(source, files, kernel)
    assert not list(files.directory.iterdir())


@pytest.mark.parametrize("size", [7, None])
async def test_too_large(
    source: KernelImageSource, files: InstanceFiles, size: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel larger than any is refused, also where Glance does not know its size."""
    monkeypatch.setattr(kernel_files, "MAX_BYTES", 6)

    with pytest.raises(KernelTooLarge):
        await fetch(source, files, source.add(b"kernel!", size=size))
    assert not list(files.directory.iterdir())
