"""A guest's own copy of the kernel and the initial RAM disk that its image names."""

import asyncio
from pathlib import Path
from typing import Final
from uuid import UUID

from sev_agent.compute.image_download import IncomingFile
from sev_agent.compute.image_inspection import ImageError
from sev_agent.compute.record import InstanceFiles
from sev_agent.config import ImagesSection
from sev_agent.openstack.glance import Glance
from sev_agent.sev.image_properties import KERNEL_ID, RAMDISK_ID, KernelImages

MAX_BYTES: Final = 1024**3
"""QEMU reads them into the guest's memory whole."""


class KernelTooLarge(ImageError):
    """A kernel or an initial RAM disk is larger than any that boots."""

    code = "image.kernel_too_large"


class KernelTimeout(ImageError):
    """A kernel or an initial RAM disk did not arrive in time."""

    code = "image.download_timeout"
    retryable = True


async def fetch_kernel(glance: Glance, images: KernelImages, files: InstanceFiles, settings: ImagesSection) -> None:
    """Bring both into the guest's directory, verified. Files that are there already are taken: a build may be resumed.

    Raises ``ImageError``'s subclasses, and what Glance raises.
    """
    await _fetch(glance, images.kernel, files.kernel, settings, KERNEL_ID)
    if images.ramdisk is not None:
        await _fetch(glance, images.ramdisk, files.ramdisk, settings, RAMDISK_ID)


async def _fetch(glance: Glance, image_id: UUID, path: Path, settings: ImagesSection, name: str) -> None:
    if await asyncio.to_thread(path.exists):
        return
    image = await glance.get_image(image_id)
    field = f"image.properties.{name}"
    if image.size is not None and image.size > MAX_BYTES:
        raise _too_large(image_id, field)
    received = 0
    try:
        async with asyncio.timeout(settings.download_timeout), IncomingFile(path.parent, image) as incoming:
            chunks = glance.download(image, total_timeout=settings.download_timeout, idle_timeout=settings.idle_timeout)
            async with chunks as stream:
                async for chunk in stream:
                    received += len(chunk)
                    if received > MAX_BYTES:
                        raise _too_large(image_id, field)
                    await incoming.append(chunk)
            incoming.verify()
            await incoming.seal()
            await incoming.publish(path)
    except TimeoutError as error:
        raise KernelTimeout(
            f"image {image_id} did not arrive within {settings.download_timeout:g} s",
            field=field,
            remedy="check Glance and the network to it, or raise images.download_timeout",
        ) from error


def _too_large(image_id: UUID, field: str) -> KernelTooLarge:
    return KernelTooLarge(
        f"image {image_id} is larger than {MAX_BYTES} bytes", field=field, remedy="name a kernel's own image"
    )
