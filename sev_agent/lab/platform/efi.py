"""Sections added to an EFI program, as the Unified Kernel Image specification lays them out."""

import struct
from collections.abc import Iterator, Mapping
from pathlib import Path

_PAGE = 4096


def end_of_sections(program: bytes) -> int:
    """The first free address of the PE file ``program``, at a page's border, with the image's base in it."""
    header = struct.unpack_from("<I", program, 0x3C)[0]
    count, optional_size = struct.unpack_from("<H12xH", program, header + 6)
    base = struct.unpack_from("<Q", program, header + 24 + 24)[0]
    table = header + 24 + optional_size
    ends = [sum(struct.unpack_from("<II", program, table + 40 * number + 8)) for number in range(count)]
    return int(base) + _aligned(max(ends))


def without_date(program: bytes) -> bytes:
    """The PE file ``program`` without the time at which it was made, and without the checksum over that."""
    header = struct.unpack_from("<I", program, 0x3C)[0]
    plain = bytearray(program)
    struct.pack_into("<I", plain, header + 8, 0)
    struct.pack_into("<I", plain, header + 24 + 64, 0)
    return bytes(plain)


def write_sections(directory: Path, sections: Mapping[str, bytes]) -> None:
    """Write each section's content to ``directory``, under its name. Blocks."""
    for name, content in sections.items():
        (directory / f"section{name}").write_bytes(content)


def section_options(directory: Path, sections: Mapping[str, bytes], position: int) -> Iterator[str]:
    """Options of ``objcopy`` that add ``sections`` one behind the other from address ``position`` on."""
    for name, content in sections.items():
        yield f"--add-section={name}={directory / f'section{name}'}"
        yield f"--change-section-vma={name}={position:#x}"
        position += _aligned(len(content))


def _aligned(number: int) -> int:
    return -(-number // _PAGE) * _PAGE
