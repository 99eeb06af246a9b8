"""A guest's own copy of the kernel and the initial RAM disk that its image names."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Final, Protocol
from uuid import UUID

from sev_agent.compute.image_download import IncomingFile
from sev_agent.compute.image_inspection import ImageError
from sev_agent.compute.instance_files import InstanceFiles
from sev_agent.config import ImagesSection
from sev_agent.openstack.glance import Image
from sev_agent.sev.image_properties import KERNEL_ID, RAMDISK_ID, KernelImages

MAX_BYTES: Final = 1024**3
"""QEMU reads them into the guest's memory whole."""

_OPEN: Final = frozenset({"public", "community"})


class KernelTooLarge(ImageError):
    """A kernel or an initial RAM disk is larger than any that boots."""

    code = "image.kernel_too_large"


class KernelNotShared(ImageError):
    """An image names a kernel that belongs to somebody else."""

    code = "image.kernel_not_shared"


class KernelTimeout(ImageError):
    """A kernel or an initial RAM disk did not arrive in time."""

    code = "image.download_timeout"
    retryable = True


class KernelSource(Protocol):
    """Where kernels come from; Glance."""

    async def get_image(self, image_id: UUID) -> Image: ...

    def download(
        self, image: Image, *, total_timeout: float, idle_timeout: float
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]: ...


class KernelFiles:
    """Brings kernels from ``source`` into guests' directories, verified."""

    def __init__(self, source: KernelSource, settings: ImagesSection) -> None:
        self._source = source
        self._settings = settings

    async def fetch(self, booted: Image, images: KernelImages, files: InstanceFiles) -> None:
        """Bring what the image ``booted`` names. Files that are there already are taken: a build may be resumed.

        Raises ``ImageError``'s subclasses, and what Glance raises.
        """
        await self._fetch(booted, images.kernel, files.kernel, KERNEL_ID)
        if images.ramdisk is not None:
            await self._fetch(booted, images.ramdisk, files.ramdisk, RAMDISK_ID)

    async def _fetch(self, booted: Image, image_id: UUID, path: Path, name: str) -> None:
        if await asyncio.to_thread(path.exists):
            return
        image = await self._source.get_image(image_id)
        field = f"image.properties.{name}"
        _check_shared(image, booted, field)
        if image.size is not None and image.size > MAX_BYTES:
            raise _too_large(image_id, field)
        limit = self._settings.download_timeout
        try:
            async with asyncio.timeout(limit), IncomingFile(path.parent, image) as incoming:
                await self._receive(image, incoming, field)
                incoming.verify()
                await incoming.seal()
                await incoming.publish(path)
        except TimeoutError as error:
            raise KernelTimeout(
                f"image {image_id} did not arrive within {limit:g} s",
                field=field,
                remedy="check Glance and the network to it, or raise images.download_timeout",
            ) from error

    async def _receive(self, image: Image, incoming: IncomingFile, field: str) -> None:
        received, settings = 0, self._settings
        chunks = self._source.download(
            image, total_timeout=settings.download_timeout, idle_timeout=settings.idle_timeout
        )
        async with chunks as stream:
            async for chunk in stream:
                received += len(chunk)
                if received > MAX_BYTES:
                    raise _too_large(image.id, field)
                await incoming.append(chunk)


def _check_shared(image: Image, booted: Image, field: str) -> None:
    """The daemon may read every project's images: unchecked, a tenant's guest could be given another's."""
    if image.visibility in _OPEN or (image.owner is not None and image.owner == booted.owner):
        return
    raise KernelNotShared(
        f"image {image.id} is neither public nor of the project that owns image {booted.id}",
        field=field,
        remedy="name a kernel of the same project, or have it made public",
    )


def _too_large(image_id: UUID, field: str) -> KernelTooLarge:
    return KernelTooLarge(
        f"image {image_id} is larger than {MAX_BYTES} bytes", field=field, remedy="name a kernel's own image"
    )
