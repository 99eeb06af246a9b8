"""An instance's root disk: an overlay of its own over an image that many share."""

import asyncio
import os
from pathlib import Path
from typing import Final

import structlog

from sev_agent.compute.image_cache import CachedImage
from sev_agent.compute.qcow2 import BadHeader, read_header
from sev_agent.crash_points import CrashPoint, reached
from sev_agent.durable import UNFINISHED, sync_directory
from sev_agent.errors import SevAgentError
from sev_agent.sev.sizes import GIB
from sev_agent.subprocesses import ProgramFailed, run_bounded
from sev_agent.uninterrupted import in_thread

log = structlog.get_logger(__name__)

_CREATE_TIMEOUT: Final = 60.0
_PRIVATE: Final = 0o600
"""Of the daemon alone, until libvirt gives the file to QEMU's user."""


class DiskFailed(SevAgentError):
    """The root disk could not be made; another host may be able to."""

    code = "disk.failed"
    retryable = True


async def create_disk(path: Path, base: CachedImage, size_gb: int, *, qemu_img: str = "qemu-img") -> None:
    """Make ``path`` a qcow2 file of ``size_gb`` GiB over ``base``, durably; a disk that is so already is kept.

    The caller keeps ``base`` acquired until the disk is known to the cache's ``in_use``.
    Raises ``DiskFailed``, ``ProgramError``'s other subclasses, ``OSError``.
    """
    size = size_gb * GIB
    if await asyncio.to_thread(_is_right, path, base, size):
        return
    # One name, so that what a kill leaves is replaced by the next try.
    half_made = path.with_name(f".{path.name}{UNFINISHED}")
    argv = [qemu_img, "create", "-q", "-f", "qcow2", "-b", str(base.path), "-F", base.format, str(half_made), str(size)]
    try:
        await run_bounded(argv, timeout=_CREATE_TIMEOUT)
        await in_thread(_publish, half_made, path)
    except ProgramFailed as error:
        raise DiskFailed(
            f"qemu-img cannot create {path}: {error.stderr or error.message}",
            remedy="free space on this host's disk, or mend what qemu-img says",
        ) from error
    finally:
        await in_thread(half_made.unlink, missing_ok=True)


def _is_right(path: Path, base: CachedImage, size: int) -> bool:
    try:
        header = read_header(path)
    except FileNotFoundError:
        return False
    except PermissionError:
        # It was whole when it got its name, and libvirt has since given it to QEMU's user: a guest may be running.
        return True
    except BadHeader as error:
        log.warning("disk.damaged", path=str(path), error=str(error))
        return False
    expected = (os.fsencode(base.path), base.format.encode(), size)
    found = (header.backing_file, header.backing_format, header.virtual_size)
    if found != expected:
        log.warning("disk.replaced", path=str(path), found=repr(found), expected=repr(expected))
    return found == expected


def _publish(half_made: Path, path: Path) -> None:
    descriptor = os.open(half_made, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fchmod(descriptor, _PRIVATE)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    reached(CrashPoint.DISK_BEFORE_PUBLISH)
    half_made.replace(path)
    sync_directory(path.parent)
