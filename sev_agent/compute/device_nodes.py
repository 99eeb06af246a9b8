"""Device nodes that come and go: a driver that is loaded or unloaded makes or removes its own, and the kernel tells."""

import asyncio
import ctypes
import os
import struct
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Final

import structlog

log = structlog.stdlib.get_logger(__name__)

_CREATED, _DELETED, _MOVED = 0x100, 0x200, 0x40 | 0x80
_ONLY_A_DIRECTORY: Final = 0x0100_0000
_WATCHED: Final = _CREATED | _DELETED | _MOVED | _ONLY_A_DIRECTORY
_OVERFLOW, _IGNORED = 0x4000, 0x8000
_HEAD: Final = struct.Struct("iIII")
"""``struct inotify_event``, from inotify(7): watch, mask, cookie, length of the name after it."""

_CHUNK: Final = 64 * 1024
_AGAIN_SECONDS: Final = 60.0


class DeviceNodes:
    """Calls ``on_change`` when one of ``names`` in ``directory`` comes or goes.

    ``directory`` is ``/dev``: a devtmpfs tells of what the kernel itself makes there. Where it cannot be watched, that
    is said once and tried again, and nothing is told meanwhile: whoever leans on this looks by itself now and then.
    """

    def __init__(self, directory: Path, names: Collection[str], *, on_change: Callable[[], None]) -> None:
        self._directory = directory
        self._names = {os.fsencode(name) for name in names}
        self._on_change = on_change
        self._lost = asyncio.Event()
        self._silent = False

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            try:
                await self._watch()
            except OSError as error:
                if not self._silent:
                    log.warning("host.device_nodes.unwatched", directory=str(self._directory), reason=str(error))
                self._silent = True
            await asyncio.sleep(_AGAIN_SECONDS)

    async def _watch(self) -> None:
        """Return when the directory is gone. Raises ``OSError`` where it is not there or inotify's limits are met."""
        loop = asyncio.get_running_loop()
        descriptor = _watching(self._directory)
        try:
            self._silent = False
            self._lost.clear()
            loop.add_reader(descriptor, self._read, descriptor)
            # What happened before the watch began was told by nobody.
            self._on_change()
            await self._lost.wait()
        finally:
            loop.remove_reader(descriptor)
            os.close(descriptor)

    def _read(self, descriptor: int) -> None:
        try:
            events = list(_events(os.read(descriptor, _CHUNK)))
        except BlockingIOError:
            return
        if any(mask & _OVERFLOW or name in self._names for mask, name in events):
            self._on_change()
        if any(mask & _IGNORED for mask, _ in events):
            self._lost.set()


def _watching(directory: Path) -> int:
    """A descriptor of inotify. The standard library has no call for it."""
    library = ctypes.CDLL(None, use_errno=True)
    descriptor = _checked(library.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK))
    try:
        _checked(library.inotify_add_watch(descriptor, os.fsencode(directory), _WATCHED))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def _events(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The mask and the name of each event."""
    place = 0
    while place < len(data):
        _, mask, _, length = _HEAD.unpack_from(data, place)
        place += _HEAD.size
        yield mask, data[place : place + length].rstrip(b"\0")
        place += length
