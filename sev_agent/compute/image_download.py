"""The bytes of an image on their way into a file: counted, hashed, synced, or gone without a trace."""

import hashlib
import os
import re
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol, Self
from uuid import uuid4

from sev_agent.compute.image_inspection import ImageError
from sev_agent.crash_points import CrashPoint, reached
from sev_agent.durable import UNFINISHED, sync_directory
from sev_agent.openstack.glance import Image
from sev_agent.uninterrupted import in_thread

if TYPE_CHECKING:
    from hashlib import _Hash

INCOMING_PREFIX: Final = ".incoming-"
"""Names that start so are unfinished downloads: at the daemon's start, what a crash left."""

_ALGORITHMS: Final = frozenset({"sha256", "sha384", "sha512"})
_DIGEST: Final = re.compile("[0-9a-fA-F]{32,128}")
_READ_ONLY: Final = 0o444


class ImageSource(Protocol):
    """Where images come from; Glance. Times are seconds: in all, and without a byte."""

    def download(
        self, image: Image, *, total_timeout: float, idle_timeout: float
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]: ...


class ImageNoHash(ImageError):
    """Glance knows no hash of the image, so its content could not be verified."""

    code = "image.no_hash"


class ImageHashMismatch(ImageError):
    """The downloaded bytes are not those that Glance describes."""

    code = "image.hash_mismatch"
    retryable = True


def expected_hash(image: Image) -> tuple[str, str]:
    """The algorithm, and the digest in hexadecimal, by which ``image`` is verified.

    MD5, which keeps out damage but not malice, is taken only from a Glance that knows nothing better (before 2018).
    Raises ``ImageNoHash``.
    """
    algorithm, digest = "md5", image.checksum or ""
    if image.os_hash_algo in _ALGORITHMS and image.os_hash_value:
        algorithm, digest = image.os_hash_algo, image.os_hash_value
    # It becomes a part of the file's name in the cache.
    if _DIGEST.fullmatch(digest):
        return algorithm, digest.lower()
    raise ImageNoHash(
        f"Glance gives no hash of image {image.id} by which its content could be verified",
        remedy="upload the image again: Glance then computes os_hash_value (sha512 by default)",
    )


class IncomingFile:
    """A file that comes to be in ``directory``. Within its context; at the end it is published, or it is gone.

    The disk is touched in threads, and never by two at once.
    """

    def __init__(self, directory: Path, image: Image) -> None:
        algorithm, self._expected = expected_hash(image)
        self._image = image
        self._digest: _Hash = hashlib.new(algorithm, usedforsecurity=algorithm != "md5")
        self._descriptor: int | None = None
        self.path = directory / f"{INCOMING_PREFIX}{image.id}-{uuid4().hex}{UNFINISHED}"

    async def __aenter__(self) -> Self:
        try:
            await in_thread(self._open)
        except BaseException:
            await in_thread(self._discard)
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await in_thread(self._discard)

    async def append(self, chunk: bytes) -> None:
        """Raises ``OSError``."""
        await in_thread(self._append, chunk)

    def verify(self) -> None:
        """Compare what arrived with the image's hash. Raises ``ImageHashMismatch``."""
        if self._digest.hexdigest() != self._expected:
            raise ImageHashMismatch(
                f"image {self._image.id} arrived with {self._digest.name} {self._digest.hexdigest()},"
                f" not {self._expected}",
                remedy="try again; if it stays so, Glance's copy is damaged: upload the image anew",
            )

    async def seal(self) -> None:
        """Make the content durable, and readable but not writable for everyone. Raises ``OSError``."""
        await in_thread(self._seal)

    async def publish(self, path: Path) -> None:
        """Give the sealed file its final name. Raises ``OSError``."""
        await in_thread(self._publish, path)

    def _open(self) -> None:
        self._descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    def _append(self, chunk: bytes) -> None:
        assert self._descriptor is not None
        self._digest.update(chunk)
        rest = memoryview(chunk)
        while rest:
            rest = rest[os.write(self._descriptor, rest) :]

    def _seal(self) -> None:
        assert self._descriptor is not None
        os.fchmod(self._descriptor, _READ_ONLY)
        os.fsync(self._descriptor)

    def _publish(self, path: Path) -> None:
        reached(CrashPoint.IMAGE_BEFORE_PUBLISH)
        self.path.replace(path)
        reached(CrashPoint.IMAGE_AFTER_PUBLISH)
        sync_directory(path.parent)

    def _discard(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
        self.path.unlink(missing_ok=True)
