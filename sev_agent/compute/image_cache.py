"""Images kept on this host: downloaded once, verified, inspected, and evicted when others need the room."""

import asyncio
import contextlib
import errno
import os
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import structlog

from sev_agent.compute.image_download import (
    INCOMING_PREFIX,
    ImageHashMismatch,
    ImageSource,
    IncomingFile,
    expected_hash,
)
from sev_agent.compute.image_inspection import (
    ImageError,
    declared_format,
    inspect,
    stored_virtual_size,
)
from sev_agent.compute.qcow2 import BadHeader
from sev_agent.config import ImagesSection
from sev_agent.crash_points import CrashPoint, reached
from sev_agent.openstack.glance import Image
from sev_agent.sev.image_form import DiskFormat
from sev_agent.sev.sizes import GIB
from sev_agent.uninterrupted import in_thread

log = structlog.get_logger(__name__)

_DIRECTORY_MODE: Final = 0o755
_NO_SPACE: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_USED_SUFFIX: Final = ".used"


class ImageNoSpace(ImageError):
    """The disk of the image cache is full."""

    code = "image.no_space"
    retryable = True


class ImageCacheFull(ImageError):
    """The image does not fit beside the images in use, within the configured size of the cache."""

    code = "image.cache_full"
    retryable = True


class ImageDownloadTimeout(ImageError):
    """The image did not arrive in time."""

    code = "image.download_timeout"
    retryable = True


@dataclass(frozen=True, slots=True)
class CachedImage:
    """An image in the cache: verified, inspected, read-only. ``virtual_size`` is bytes."""

    path: Path
    format: DiskFormat
    virtual_size: int


@dataclass(slots=True)
class _Flight:
    """One download, and how many wait for it."""

    task: asyncio.Task[CachedImage]
    waiters: int = 0


@dataclass(slots=True)
class _Room:
    """Bytes of the cache that are kept for one download, and how many of them it has filled."""

    granted: int
    filled: int = 0


@dataclass(frozen=True, slots=True, order=True)
class _Entry:
    last_used_ns: int
    path: Path = field(compare=False)
    size: int = field(compare=False)


class ImageCache:
    """The images in ``directory``, which belongs to this object alone.

    ``in_use`` tells which of its files are the backing file of a disk; it runs in a thread and may read the disk. An
    image that is acquired is in use as well. The time of last use is kept on the disk, so it outlives the daemon.
    """

    def __init__(
        self,
        directory: Path,
        source: ImageSource,
        settings: ImagesSection,
        *,
        in_use: Callable[[], set[Path]],
        qemu_img: str = "qemu-img",
    ) -> None:
        self._directory = directory
        self._source = source
        self._settings = settings
        self._in_use = in_use
        self._qemu_img = qemu_img
        self._flights: dict[Path, _Flight] = {}
        self._rooms: list[_Room] = []
        self._leases: Counter[Path] = Counter()
        self._leased_lately: set[Path] = set()
        # Looking a file up, bringing one in, evicting one and listing them all exclude one another.
        self._changing = asyncio.Lock()
        self._making_room = asyncio.Lock()

    async def prepare(self) -> None:
        """Create the directory, and remove what a crash left of downloads. Raises ``OSError``."""
        removed = await asyncio.to_thread(_prepare, self._directory)
        if removed:
            log.info("image.cache.cleaned", removed=removed)

    @asynccontextmanager
    async def acquire(self, image: Image) -> AsyncIterator[CachedImage]:
        """``image`` in the cache, where it stays at least until the context ends.

        Builds that ask for the same image at once share one download; it is given up when the last of them is.
        Raises ``ImageError``'s subclasses, and what the source raises.
        """
        disk_format = declared_format(image)
        _, digest = expected_hash(image)
        path = self._directory / f"{image.id}-{digest[:32]}.{disk_format}"
        self._leases[path] += 1
        self._leased_lately.add(path)
        try:
            async with self._changing:
                size = await asyncio.to_thread(_look_up, path, disk_format)
            yield CachedImage(path, disk_format, size) if size is not None else await self._fetched(image, path)
        finally:
            self._leases[path] -= 1
            if not self._leases[path]:
                del self._leases[path]

    async def _fetched(self, image: Image, path: Path) -> CachedImage:
        flight = self._flights.get(path)
        if flight is None:
            flight = self._flights[path] = _Flight(self._take_off(image, path))
        flight.waiters += 1
        try:
            # Shielded: one who is cancelled leaves the download to the others.
            return await asyncio.shield(flight.task)
        finally:
            flight.waiters -= 1
            if not flight.waiters:
                # Whoever comes from now on must not join a download that is being given up.
                if self._flights.get(path) is flight:
                    del self._flights[path]
                flight.task.cancel()
                await asyncio.wait({flight.task})

    def _take_off(self, image: Image, path: Path) -> asyncio.Task[CachedImage]:
        task = asyncio.create_task(self._download(image, path), name=f"image-download-{image.id}")
        task.add_done_callback(_mark_seen)
        return task

    async def _download(self, image: Image, path: Path) -> CachedImage:
        bound = log.bind(image_id=str(image.id), size=image.size)
        bound.info("image.download.started")
        try:
            async with self._room_for(image) as room, asyncio.timeout(self._settings.download_timeout):
                cached = await self._receive(image, path, room)
        except (TimeoutError, OSError) as error:
            bound.warning("image.download.failed", error=str(error) or type(error).__name__)
            raise self._explained(error, image) from error
        except Exception as error:
            bound.warning("image.download.failed", error=str(error))
            raise
        bound.info("image.download.finished", path=str(path))
        return cached

    async def _receive(self, image: Image, path: Path, room: _Room) -> CachedImage:
        async with IncomingFile(self._directory, image) as incoming:
            chunks = self._source.download(
                image, total_timeout=self._settings.download_timeout, idle_timeout=self._settings.idle_timeout
            )
            async with chunks as stream:
                async for chunk in stream:
                    room.filled += len(chunk)
                    if room.filled > room.granted:
                        raise self._overrun(image, room)
                    await incoming.append(chunk)
            reached(CrashPoint.IMAGE_AFTER_DOWNLOAD)
            incoming.verify()
            inspection = await inspect(incoming.path, image, self._settings, qemu_img=self._qemu_img)
            await incoming.seal()
            async with self._changing:
                await incoming.publish(path)
                room.granted = room.filled = 0  # from here on it counts as a file
        return CachedImage(path, inspection.format, inspection.virtual_size)

    @asynccontextmanager
    async def _room_for(self, image: Image) -> AsyncIterator[_Room]:
        async with self._making_room:
            room = _Room(await self._make_room(image))
            self._rooms.append(room)
        try:
            yield room
        finally:
            # By identity: two rooms of the same size are equal.
            self._rooms = [other for other in self._rooms if other is not room]

    async def _make_room(self, image: Image) -> int:
        """Evict what must go, the longest unused first; return the bytes that the download may fill."""
        # An image that is acquired while in_use looks around may be given back before it ends, with a new disk on it
        # that was not seen. So everything that was acquired since then stays.
        self._leased_lately = set(self._leases)
        used = await asyncio.to_thread(self._in_use)
        async with self._changing:
            entries = await asyncio.to_thread(_entries, self._directory)
            bound = self._settings.cache_max_gb * GIB - sum(room.granted for room in self._rooms)
        needed = image.size or 0
        cached = sum(entry.size for entry in entries)
        free = await self._free()
        for entry in sorted(entries):
            if cached + needed <= bound and needed <= free:
                break
            if await self._evict(entry.path, used):
                cached -= entry.size
                free = await self._free()
        if cached + needed > bound:
            raise self._cache_full(image, needed)
        if needed > free:
            raise self._no_space(image)
        return needed if image.size is not None else min(bound - cached, free)

    async def _free(self) -> int:
        """Bytes that are free on the disk and not kept for another download."""
        free = await asyncio.to_thread(_free_bytes, self._directory)
        return free - sum(room.granted - room.filled for room in self._rooms)

    async def _evict(self, path: Path, used: set[Path]) -> bool:
        async with self._changing:
            if path in used or path in self._leased_lately:
                return False
            await in_thread(_remove, path)
        log.info("image.evicted", path=str(path))
        return True

    def _explained(self, error: OSError, image: Image) -> OSError | ImageError:
        if error.errno in _NO_SPACE:
            return self._no_space(image)
        if not isinstance(error, TimeoutError):
            return error
        return ImageDownloadTimeout(
            f"image {image.id} did not arrive within {self._settings.download_timeout:g} s",
            remedy="check Glance and the network to it, or raise images.download_timeout",
        )

    def _overrun(self, image: Image, room: _Room) -> ImageError:
        if image.size is None:
            return self._cache_full(image, room.filled)
        return ImageHashMismatch(
            f"more than the {image.size} bytes of image {image.id} arrived",
            remedy="try again; if it stays so, Glance's copy is damaged: upload the image anew",
        )

    def _cache_full(self, image: Image, size: int) -> ImageCacheFull:
        return ImageCacheFull(
            f"image {image.id} ({size} bytes or more) does not fit into the image cache of"
            f" {self._settings.cache_max_gb} GiB beside the images in use",
            remedy="raise images.cache_max_gb on this host, or use another host",
        )

    def _no_space(self, image: Image) -> ImageNoSpace:
        size = f" ({image.size} bytes)" if image.size else ""
        return ImageNoSpace(
            f"the disk of {self._directory} has no space for image {image.id}{size}",
            remedy="free space on this host's disk, or use another host",
        )


def _mark_seen(task: asyncio.Task[CachedImage]) -> None:
    # Whoever waits raises its error, and perhaps nobody does.
    if not task.cancelled():
        task.exception()


def _prepare(directory: Path) -> int:
    directory.mkdir(parents=True, exist_ok=True)
    directory.chmod(_DIRECTORY_MODE)  # QEMU, under another user, must reach the files
    left = list(directory.glob(f"{INCOMING_PREFIX}*"))
    for path in left:
        path.unlink(missing_ok=True)
    return len(left)


def _used_mark(path: Path) -> Path:
    # Not the image's own times: libvirt gives the image to QEMU's user, and then only that user may set them.
    return path.with_name(f".{path.name}{_USED_SUFFIX}")


def _look_up(path: Path, disk_format: DiskFormat) -> int | None:
    """The virtual size of the file, marked as used now; None without a file that can be used."""
    try:
        size = stored_virtual_size(path, disk_format)
    except FileNotFoundError:
        return None
    except BadHeader as error:
        log.warning("image.cache.damaged", path=str(path), error=str(error))
        return None
    _used_mark(path).touch()
    return size


def _entries(directory: Path) -> list[_Entry]:
    return [_entry(path) for path in directory.iterdir() if not path.name.startswith(".")]


def _entry(path: Path) -> _Entry:
    status = path.stat()
    last_used = status.st_mtime_ns
    with contextlib.suppress(FileNotFoundError):
        last_used = max(last_used, _used_mark(path).stat().st_mtime_ns)
    return _Entry(last_used, path, status.st_blocks * 512)


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)
    _used_mark(path).unlink(missing_ok=True)


def _free_bytes(directory: Path) -> int:
    status = os.statvfs(directory)
    return status.f_bavail * status.f_frsize
