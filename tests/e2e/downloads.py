"""A download that stands still half way, for as long as a test wants."""

import asyncio
import os
from pathlib import Path
from typing import cast
from uuid import UUID

from sev_agent.compute.image_download import INCOMING_PREFIX
from tests.e2e.cloud import Cloud
from tests.e2e.waiting import eventually
from tests.images import MIB
from tests.proxy import Proxy

IMAGE_MIB = 32


class StallingProxy(Proxy):
    """A proxy that can freeze by itself."""

    def __init__(self, target_port: int) -> None:
        super().__init__(target_port)
        self._left: int | None = None

    def freeze_after(self, count: int) -> None:
        """Freeze once some ``count`` more bytes were passed on."""
        self._left = count

    def thaw(self) -> None:
        self._left = None
        super().thaw()

    def passing(self, count: int) -> None:
        if self._left is not None:
            self._left -= count
            if self._left <= 0:
                self.freeze()

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        await super()._pump(cast("asyncio.StreamReader", _Counted(source, self)), sink)


class _Counted:
    """A reader that tells its proxy what it has read, before that is passed on."""

    def __init__(self, source: asyncio.StreamReader, proxy: StallingProxy) -> None:
        self._source = source
        self._proxy = proxy

    async def read(self, size: int) -> bytes:
        chunk = await self._source.read(size)
        self._proxy.passing(len(chunk))
        return chunk


async def upload_big(cloud: Cloud, directory: Path) -> UUID:
    """An image of ``IMAGE_MIB`` MiB."""
    path = directory / "big.raw"
    await asyncio.to_thread(path.write_bytes, os.urandom(MIB) * IMAGE_MIB)
    return await cloud.upload(path, disk_format="raw")


async def begin_download(cloud: Cloud, proxy: StallingProxy, image: UUID) -> tuple[UUID, Path]:
    """A build from ``image`` that hangs with a part of the image on the disk: the instance, and the file.

    ``proxy`` stands before Glance; it is frozen then.
    """
    proxy.freeze_after(IMAGE_MIB // 2 * MIB)
    request = cloud.request(image__id=str(image))
    await cloud.order("build_and_run_instance", instance=request)

    async def begun() -> Path | None:
        return next((path for path in cloud.images_dir.glob(f"{INCOMING_PREFIX}*") if path.stat().st_size), None)

    path = await eventually(begun, within=20, what="a download")
    assert path is not None
    return UUID(request["uuid"]), path
