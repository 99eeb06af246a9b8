"""What a firmware image says of itself: the table of GUIDs that OVMF puts below its reset vector.

Layout: OVMF's ``OvmfPkg/ResetVector``; QEMU reads it in ``hw/i386/pc_sysfw_ovmf.c``.
"""

import uuid
from pathlib import Path
from typing import NamedTuple

_FOOTER_END = 32
"""The table ends so many bytes before the image does; its last entry is the footer."""

_HEAD = 18
_FOOTER = uuid.UUID("96b582de-1fb2-45f7-baea-a366c55a082d")
_RESET_VECTOR = uuid.UUID("00f771de-1a7e-4fcb-890e-68c77e2fb44e")
_METADATA = uuid.UUID("dc886566-984a-4798-a75e-5585a7bf67cc")
_HASHES = uuid.UUID("7255371f-3a3b-4b04-927b-1da6efa8d454")


class Area(NamedTuple):
    """A part of the guest's memory."""

    base: int
    size: int


class Image(NamedTuple):
    """What QEMU needs of a firmware image.

    ``reset_vector`` is for SEV-ES and SEV-SNP, ``metadata`` for SEV-SNP, ``hashes`` for a kernel that is measured.
    """

    reset_vector: bool
    metadata: bool
    hashes: Area | None


def read_image(path: str) -> Image:
    """The table of the image at ``path``; of no image, or one without a table, nothing."""
    entries = _entries(Path(path).read_bytes()) if path else {}
    hashes = entries.get(_HASHES)
    return Image(
        reset_vector=_RESET_VECTOR in entries,
        metadata=_METADATA in entries,
        hashes=None if hashes is None else Area(*(int.from_bytes(hashes[at : at + 4], "little") for at in (0, 4))),
    )


def _entries(content: bytes) -> dict[uuid.UUID, bytes]:
    """Entries are read backwards: data, then the length of the whole entry, then its GUID."""
    end = len(content) - _FOOTER_END
    if end < _HEAD or _guid(content, end) != _FOOTER:
        return {}
    start = end - int.from_bytes(content[end - _HEAD : end - 16], "little")
    end -= _HEAD
    found: dict[uuid.UUID, bytes] = {}
    while end - _HEAD >= max(start, 0):
        length = int.from_bytes(content[end - _HEAD : end - 16], "little")
        if length < _HEAD or end - length < start:
            break
        found[_guid(content, end)] = content[end - length : end - _HEAD]
        end -= length
    return found


def _guid(content: bytes, end: int) -> uuid.UUID:
    return uuid.UUID(bytes_le=content[end - 16 : end])
