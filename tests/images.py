"""Images for tests: made by the real qemu-img, described as Glance describes them, served from memory."""

import asyncio
import hashlib
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from sev_agent.config import ImagesSection
from sev_agent.openstack.glance import Image
from sev_agent.schema import Flavor

FLAVOR = Flavor(vcpus=1, memory_mb=512, root_gb=1)
SETTINGS = ImagesSection()
MIB = 1024**2


def qemu_img(*arguments: object) -> None:
    subprocess.run(["qemu-img", *map(str, arguments)], check=True, capture_output=True)  # noqa: S607


def make_qcow2(path: Path, size: str = "64M", **options: str) -> Path:
    """A qcow2 image with 1 MiB of data in it."""
    source = path.with_suffix(".source")
    source.write_bytes(bytes(range(256)) * 4096)
    chosen = ",".join(f"{name}={value}" for name, value in options.items())
    qemu_img("convert", "-f", "raw", "-O", "qcow2", *(["-o", chosen] if chosen else []), source, path)
    source.unlink()
    qemu_img("resize", "-q", "-f", "qcow2", path, size)
    return path


def describe(content: bytes = b"", **changes: Any) -> Image:
    """The description that Glance would give of ``content``, apart from ``changes``."""
    fields: dict[str, Any] = {
        "id": uuid4(),
        "name": "test",
        "status": "active",
        "visibility": "public",
        "disk_format": "qcow2",
        "container_format": "bare",
        "size": len(content),
        "virtual_size": None,
        "min_disk": 0,
        "min_ram": 0,
        "checksum": hashlib.md5(content, usedforsecurity=False).hexdigest(),
        "os_hash_algo": "sha512",
        "os_hash_value": hashlib.sha512(content).hexdigest(),
        "os_hidden": False,
        "owner": None,
    }
    return Image(**{**fields, **changes})


class MemorySource:
    """Images served from memory. With ``gate`` cleared, a download waits after its first chunk."""

    def __init__(self, *, chunk: int = 64 * 1024) -> None:
        self.contents: dict[object, bytes] = {}
        self.downloads = 0
        self.abandoned = 0
        self.started = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()
        self._chunk = chunk

    def add(self, content: bytes, **changes: Any) -> Image:
        image = describe(content, **changes)
        self.contents[image.id] = content
        return image

    @asynccontextmanager
    async def download(
        self, image: Image, *, total_timeout: float, idle_timeout: float
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        self.downloads += 1
        try:
            yield self._chunks(self.contents[image.id])
        except asyncio.CancelledError:
            self.abandoned += 1
            raise

    async def _chunks(self, content: bytes) -> AsyncIterator[bytes]:
        for offset in range(0, len(content), self._chunk):
            yield content[offset : offset + self._chunk]
            self.started.set()
            await self.gate.wait()
