"""What a qcow2 file says of itself in its first cluster, read without QEMU.

Layout: QEMU's ``docs/interop/qcow2.txt``.
"""

import os
import struct
from dataclasses import dataclass
from enum import IntFlag
from pathlib import Path

MAGIC = b"QFI\xfb"

_FIXED = struct.Struct(">4sIQIIQIIQQIIQ")
_VERSION_3 = struct.Struct(">QQQII")
_EXTENSION = struct.Struct(">II")
_FIRST_READ = 64 * 1024
_MAX_BACKING_NAME = 1023

_END = 0
_BACKING_FORMAT = 0xE2792ACA
_DATA_FILE = 0x44415441
_ENCRYPTION = 0x0537BE77


class Incompatible(IntFlag):
    """Feature bits that a reader must know, or else refuse the file."""

    DIRTY = 1 << 0
    CORRUPT = 1 << 1
    DATA_FILE = 1 << 2
    COMPRESSION_TYPE = 1 << 3
    EXTENDED_L2 = 1 << 4


_SECTOR = 512


class BadHeader(ValueError):
    """The bytes are not a qcow2 header of version 2 or 3."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """The fields of a header that decide about safety. ``virtual_size`` is bytes; names are as found, undecoded."""

    version: int
    virtual_size: int
    incompatible: int
    crypt_method: int
    backing_file: bytes | None
    backing_format: bytes | None
    data_file: bytes | None
    encryption_header: bool

    @property
    def needs_data_file(self) -> bool:
        return self.data_file is not None or bool(self.incompatible & Incompatible.DATA_FILE)

    @property
    def encrypted(self) -> bool:
        return self.crypt_method != 0 or self.encryption_header

    @property
    def unknown_features(self) -> int:
        return self.incompatible & ~sum(Incompatible)


def read_header(path: Path) -> Header:
    """Read the header of the file ``path``; blocks on the disk. Raises ``BadHeader`` and ``OSError``."""
    with path.open("rb", buffering=0) as file:
        start = os.pread(file.fileno(), _FIRST_READ, 0)
        missing = _cluster_size(start) - len(start)
        if missing > 0 and len(start) == _FIRST_READ:
            start += os.pread(file.fileno(), missing, len(start))
    return parse_header(start)


def parse_header(cluster: bytes) -> Header:
    """Decode ``cluster``, the file's first cluster or what there is of it. Raises ``BadHeader``."""
    cluster_size = _cluster_size(cluster)
    _, version, backing_offset, backing_length, _, size, crypt_method, *_ = _FIXED.unpack_from(cluster)
    incompatible, header_length = 0, _FIXED.size
    if version == 3:
        if len(cluster) < _FIXED.size + _VERSION_3.size:
            raise BadHeader("the header is cut off")
        incompatible, _, _, _, header_length = _VERSION_3.unpack_from(cluster, _FIXED.size)
        if not _FIXED.size + _VERSION_3.size <= header_length <= cluster_size:
            raise BadHeader(f"the header length {header_length} is out of bounds")
    if backing_offset and (backing_length > _MAX_BACKING_NAME or backing_offset + backing_length > cluster_size):
        raise BadHeader("the backing file's name is out of bounds")
    extensions = _extensions(cluster[: backing_offset or cluster_size], header_length)
    return Header(
        version=version,
        # QEMU's own view: it counts a disk in whole sectors (block/qcow2.c, qcow2_do_open).
        virtual_size=size - size % _SECTOR,
        incompatible=incompatible,
        crypt_method=crypt_method,
        backing_file=cluster[backing_offset : backing_offset + backing_length] if backing_offset else None,
        backing_format=extensions.get(_BACKING_FORMAT),
        data_file=extensions.get(_DATA_FILE),
        encryption_header=_ENCRYPTION in extensions,
    )


def _cluster_size(start: bytes) -> int:
    if not start.startswith(MAGIC):
        raise BadHeader("the magic bytes of qcow2 are missing")
    if len(start) < _FIXED.size:
        raise BadHeader("the header is cut off")
    _, version, _, _, cluster_bits, *_ = _FIXED.unpack_from(start)
    if version not in {2, 3}:
        raise BadHeader(f"version {version} is neither 2 nor 3")
    if not 9 <= cluster_bits <= 21:
        raise BadHeader(f"the cluster size of 2^{cluster_bits} bytes is out of bounds")
    return 1 << int(cluster_bits)


def _extensions(header: bytes, offset: int) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    while offset + _EXTENSION.size <= len(header):
        kind, length = _EXTENSION.unpack_from(header, offset)
        if kind == _END:
            break
        offset += _EXTENSION.size
        if offset + length > len(header):
            raise BadHeader(f"the header extension {kind:#010x} is out of bounds")
        found[kind] = header[offset : offset + length]
        offset += (length + 7) & ~7
    return found
