"""Is an image what it says, and safe to give to QEMU? An image is untrusted input.

The image's own bytes are judged first, without QEMU; only a file that names no other file is shown to ``qemu-img``.
"""

import asyncio
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from sev_agent.compute.qcow2 import MAGIC, BadHeader, Header, Incompatible, read_header
from sev_agent.config import ImagesSection
from sev_agent.errors import SevAgentError
from sev_agent.openstack.glance import Image
from sev_agent.schema import Flavor
from sev_agent.sev.image_form import DiskFormat, ImageForm, check_form
from sev_agent.sev.sizes import Sizes, check_sizes
from sev_agent.subprocesses import ProgramFailed, ProgramOutputTooLarge, ProgramTimeout, run_bounded

FIELD = "instance.image.id"

_MAX_REPORT = 1024 * 1024
_CHECK_FOUND_ERRORS = 2
_CHECK_FOUND_LEAKS = 3


class ImageError(SevAgentError):
    """An image cannot be used."""

    code: ClassVar[str] = "image"

    def __init__(self, message: str, *, remedy: str, field: str = FIELD) -> None:
        super().__init__(message, field=field, remedy=remedy)


class ImageFormatMismatch(ImageError):
    """The image's content is not of the format that Glance declares."""

    code = "image.format_mismatch"


class ImageBackingFile(ImageError):
    """The image refers to a backing file, which would be read from the host."""

    code = "image.backing_file"


class ImageDataFile(ImageError):
    """The image keeps its data in another file, which would be read and written on the host."""

    code = "image.data_file"


class ImageEncrypted(ImageError):
    """The image is encrypted, and no key for it exists here."""

    code = "image.encrypted"


class ImageCorrupt(ImageError):
    """The image's structure is damaged."""

    code = "image.corrupt"


class ImageInspectionTimeout(ImageError):
    """The image could not be judged within the time limit: a hostile image, or an overloaded host."""

    code = "image.inspection_timeout"
    retryable = True


@dataclass(frozen=True, slots=True)
class Inspection:
    """What a file was found to be. ``virtual_size`` is bytes."""

    format: DiskFormat
    virtual_size: int


def check_declared(image: Image, flavor: Flavor) -> None:
    """Judge ``image`` by what Glance says of it, before a byte is downloaded.

    Raises ``ImageInactive``, ``ImageFormatUnsupported``, ``FlavorTooSmall``, ``ImageTooLarge``.
    """
    declared_format(image)
    check_fits(image.virtual_size, image, flavor)


def declared_format(image: Image) -> DiskFormat:
    """The format that Glance declares. Raises ``ImageInactive``, ``ImageFormatUnsupported``."""
    return check_form(
        ImageForm(status=image.status, disk_format=image.disk_format, container_format=image.container_format)
    )


def check_fits(virtual_size: int | None, image: Image, flavor: Flavor) -> None:
    """Refuse an image that demands more than the flavor has, its disk of ``virtual_size`` bytes included.

    Raises ``FlavorTooSmall``, ``ImageTooLarge``.
    """
    check_sizes(
        Sizes(
            ram=flavor.memory_mb,
            disk=flavor.root_gb,
            min_ram=image.min_ram,
            min_disk=image.min_disk,
            virtual_size=virtual_size,
        )
    )


async def inspect(path: Path, image: Image, settings: ImagesSection, *, qemu_img: str = "qemu-img") -> Inspection:
    """Judge the downloaded content ``path`` of ``image``, within the settings' limits on time and memory.

    Raises a subclass of ``ImageError`` that names what is wrong; ``ProgramMissing`` without ``qemu-img``.
    """
    declared = declared_format(image)
    try:
        async with asyncio.timeout(settings.inspect_timeout):
            header = await asyncio.to_thread(_judge_content, path, image, declared)
            report = await _report(path, image, declared, settings, qemu_img)
            _judge_report(report, image, declared)
            if header is not None:
                await _check_structure(path, image, settings, qemu_img)
    except (TimeoutError, ProgramTimeout) as error:
        raise ImageInspectionTimeout(
            f"image {image.id} could not be inspected within {settings.inspect_timeout:g} s",
            remedy="rebuild it with 'qemu-img convert'; if the host was overloaded, raise images.inspect_timeout",
        ) from error
    return Inspection(declared, int(report["virtual-size"]))


def stored_virtual_size(path: Path, disk_format: DiskFormat) -> int:
    """The virtual size, in bytes, of a file that was inspected before; blocks on the disk."""
    return read_header(path).virtual_size if disk_format is DiskFormat.QCOW2 else path.stat().st_size


def content_format(start: bytes, end: bytes) -> str | None:
    """The format that QEMU's own probing would see in a file's first 2 KiB and last 512 bytes; None is raw.

    Signatures: the ``bdrv_probe`` functions of QEMU's block drivers.
    """
    for name, signature, offset in _SIGNATURES:
        if start.startswith(signature, offset):
            return name
    for name, signature in _TRAILERS:
        if end.startswith(signature):
            return name
    return "vmdk" if _is_vmdk_descriptor(start) else None


_SIGNATURES = (
    ("qcow2", MAGIC, 0),
    ("qed", b"QED\0", 0),
    ("vmdk", b"KDMV", 0),
    ("vmdk", b"COWD", 0),
    ("vpc", b"conectix", 0),
    ("vhdx", b"vhdxfile", 0),
    ("luks", b"LUKS\xba\xbe", 0),
    ("parallels", b"WithoutFreeSpace", 0),
    ("parallels", b"WithouFreSpacExt", 0),
    ("bochs", b"Bochs Virtual HD Image", 0),
    ("cloop", b"#!/bin/sh\n#V2.0 Format\n", 0),
    ("vdi", b"\x7f\x10\xda\xbe", 0x40),
)
_TRAILERS = (("vpc", b"conectix"), ("dmg", b"koly"))


def _is_vmdk_descriptor(start: bytes) -> bool:
    # As vmdk_probe() does it: after comments and blank lines, the first line says the version. Such a text names
    # its extents, which are files of the host.
    for line in start.splitlines():
        text = line.strip()
        if text.lower().startswith(b"# disk descriptorfile"):
            return True
        if text and not text.startswith(b"#"):
            return text.lower().startswith(b"version=")
    return False


def _judge_content(path: Path, image: Image, declared: DiskFormat) -> Header | None:
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        start = os.pread(file.fileno(), 2048, 0)
        end = os.pread(file.fileno(), 512, max(0, size - 512))
    if not size:
        raise ImageCorrupt(f"image {image.id} is empty", remedy="upload the image again")
    seen = content_format(start, end if size > 512 else b"") or DiskFormat.RAW
    if seen != declared:
        raise _mismatch(image, declared, seen)
    if declared is DiskFormat.RAW:
        return None
    try:
        header = read_header(path)
    except BadHeader as error:
        raise _corrupt(image, str(error)) from error
    _judge_header(header, image)
    return header


def _judge_header(header: Header, image: Image) -> None:
    if header.backing_file is not None:
        raise _backing_file(image, _printable(header.backing_file))
    if header.needs_data_file:
        raise _data_file(image, _printable(header.data_file or b""))
    if header.encrypted:
        raise _encrypted(image)
    if header.incompatible & Incompatible.CORRUPT:
        raise _corrupt(image, "it is marked as corrupt")
    if header.unknown_features:
        raise _corrupt(image, f"it has unknown incompatible features {header.unknown_features:#x}")


async def _report(
    path: Path, image: Image, declared: DiskFormat, settings: ImagesSection, qemu_img: str
) -> dict[str, Any]:
    try:
        completed = await run_bounded(
            [qemu_img, "info", "--output=json", "-f", declared, str(path)], **_bounds(settings)
        )
        report = json.loads(completed.stdout)
        if isinstance(report, dict) and isinstance(report.get("virtual-size"), int):
            return report
    except ProgramFailed as error:
        raise _corrupt(image, _said(error, path)) from error
    except (ValueError, ProgramOutputTooLarge) as error:
        raise _corrupt(image, "qemu-img cannot describe it") from error
    raise _corrupt(image, "qemu-img does not tell its virtual size")


def _judge_report(report: dict[str, Any], image: Image, declared: DiskFormat) -> None:
    # The header was judged before by our own reader; a second, independent reader must come to the same verdict.
    specific = report.get("format-specific", {}).get("data", {})
    if report.get("format") != declared:
        raise _mismatch(image, declared, str(report.get("format")))
    if name := report.get("backing-filename") or report.get("full-backing-filename"):
        raise _backing_file(image, str(name))
    if name := specific.get("data-file"):
        raise _data_file(image, str(name))
    if report.get("encrypted") or specific.get("encrypt"):
        raise _encrypted(image)
    if specific.get("corrupt"):
        raise _corrupt(image, "it is marked as corrupt")


async def _check_structure(path: Path, image: Image, settings: ImagesSection, qemu_img: str) -> None:
    # "info" reads the header alone; "check" also walks the tables, so a truncated or damaged image is refused here
    # and not by a guest's read errors later.
    try:
        await run_bounded([qemu_img, "check", "-q", "-f", "qcow2", str(path)], **_bounds(settings))
    except ProgramFailed as error:
        if error.returncode == _CHECK_FOUND_LEAKS:
            return
        damaged = "its tables are damaged, or it was cut off"
        raise _corrupt(image, damaged if error.returncode == _CHECK_FOUND_ERRORS else _said(error, path)) from error
    except ProgramOutputTooLarge as error:
        raise _corrupt(image, "its tables are damaged") from error


def _bounds(settings: ImagesSection) -> dict[str, Any]:
    return {
        "timeout": settings.inspect_timeout,
        "cpu_seconds": math.ceil(settings.inspect_timeout),
        "memory_bytes": settings.inspect_memory_mb * 1024 * 1024,
        "max_output": _MAX_REPORT,
    }


def _said(error: ProgramFailed, path: Path) -> str:
    # The host's paths are none of the tenant's business.
    lines = error.stderr.replace(str(path), "the image").splitlines()
    return lines[-1][:300] if lines else error.message


def _printable(name: bytes) -> str:
    text = name[:100].decode("ascii", errors="replace")
    return "".join(c if c.isprintable() else "?" for c in text)


def _mismatch(image: Image, declared: DiskFormat, seen: str) -> ImageFormatMismatch:
    return ImageFormatMismatch(
        f"image {image.id} is declared as '{declared}', but its content is '{seen}'",
        remedy="upload it again with --disk-format set to what it is, converted to qcow2 or raw where needed",
    )


def _backing_file(image: Image, name: str) -> ImageBackingFile:
    return ImageBackingFile(
        f"image {image.id} has a backing file, '{name}'",
        remedy="flatten it (qemu-img convert -O qcow2 SOURCE TARGET) and upload the result",
    )


def _data_file(image: Image, name: str) -> ImageDataFile:
    return ImageDataFile(
        f"image {image.id} has an external data file, '{name}'",
        remedy="convert it to one file (qemu-img convert -O qcow2 SOURCE TARGET) and upload the result",
    )


def _encrypted(image: Image) -> ImageEncrypted:
    return ImageEncrypted(
        f"image {image.id} is encrypted", remedy="decrypt it with 'qemu-img convert' and upload the result"
    )


def _corrupt(image: Image, what: str) -> ImageCorrupt:
    return ImageCorrupt(
        f"image {image.id} is corrupt: {what}",
        remedy="repair or rebuild it, verify it with 'qemu-img check', and upload it again",
    )
