# ruff: noqa: ASYNC240 - a test may block its own loop for a moment
import asyncio
import contextlib
import struct
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sev_agent.compute import image_inspection as inspection
from sev_agent.compute.image_inspection import ImageError, check_declared, check_fits, inspect
from sev_agent.compute.qcow2 import BadHeader, parse_header, read_header
from sev_agent.config import ImagesSection
from sev_agent.sev.image_form import DiskFormat
from sev_agent.sev.refusals import ImageTooLarge, RequestRefused
from tests.images import FLAVOR, MIB, SETTINGS, describe, make_qcow2, qemu_img

GIB = 1024**3


async def _refused(path: Path, **declared: Any) -> ImageError:
    with pytest.raises(ImageError) as caught:
        await inspect(path, describe(**declared), SETTINGS)
    assert caught.value.remedy
    assert caught.value.field == "instance.image.id"
    assert str(path) not in str(caught.value)
    return caught.value


def _patch(path: Path, offset: int, content: bytes) -> Path:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(content)
    return path


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return make_qcow2(tmp_path / "good.qcow2")


async def test_good_qcow2(good: Path) -> None:
    """A plain qcow2 image is accepted, with its virtual size."""
    found = await inspect(good, describe(), SETTINGS)
    assert found == inspection.Inspection(DiskFormat.QCOW2, 64 * MIB)


@pytest.mark.parametrize(
    "options",
    [{"compat": "0.10"}, {"cluster_size": "2M"}, {"extended_l2": "on"}, {"compression_type": "zstd"}],
    ids="-".join,
)
async def test_every_honest_kind_of_qcow2(tmp_path: Path, options: dict[str, str]) -> None:
    """Old, large-cluster, extended and zstd images are as good as any."""
    path = make_qcow2(tmp_path / "image", **options)
    assert (await inspect(path, describe(), SETTINGS)).virtual_size == 64 * MIB
    assert inspection.stored_virtual_size(path, DiskFormat.QCOW2) == 64 * MIB


async def test_good_raw(tmp_path: Path) -> None:
    """A plain disk's content is accepted as raw, its size the file's."""
    path = tmp_path / "disk"
    path.write_bytes(b"\xeb\x63\x90" + bytes(MIB - 5) + b"\x55\xaa")
    found = await inspect(path, describe(disk_format="raw"), SETTINGS)
    assert found == inspection.Inspection(DiskFormat.RAW, MIB)


async def test_backing_file(tmp_path: Path, good: Path) -> None:
    """An image with a backing file is refused, and the file named."""
    path = tmp_path / "overlay"
    qemu_img("create", "-f", "qcow2", "-b", good, "-F", "qcow2", path)
    error = await _refused(path)
    assert error.code == "image.backing_file"
    assert str(good) in error.message


@pytest.mark.parametrize("name", ['json:{"driver": "file", "filename": "/etc/passwd"}', "nbd://127.0.0.1/x"])
async def test_backing_file_by_a_protocol(tmp_path: Path, name: str) -> None:
    """A backing file that is no path but one of QEMU's protocols is refused all the same, and never opened."""
    path = tmp_path / "overlay"
    qemu_img("create", "-u", "-f", "qcow2", "-b", name, "-F", "raw", path, "64M")
    assert (await _refused(path)).code == "image.backing_file"


async def test_backing_file_is_refused_without_qemu(tmp_path: Path, good: Path) -> None:
    """An image that names another file is never shown to qemu-img."""
    path = tmp_path / "overlay"
    qemu_img("create", "-f", "qcow2", "-b", good, "-F", "qcow2", path)
    with pytest.raises(inspection.ImageBackingFile):
        await inspect(path, describe(), SETTINGS, qemu_img="/nonexistent")


@pytest.mark.parametrize("raw", ["on", "off"])
async def test_external_data_file(tmp_path: Path, raw: str) -> None:
    """An image that keeps its data elsewhere is refused."""
    path = tmp_path / "image"
    qemu_img("create", "-f", "qcow2", "-o", f"data_file={tmp_path / 'data'},data_file_raw={raw}", path, "1M")
    error = await _refused(path)
    assert error.code == "image.data_file"


async def test_data_file_bit_alone(good: Path) -> None:
    """The feature bit of an external data file is enough, without its name."""
    assert (await _refused(_patch(good, 72, struct.pack(">Q", 1 << 2)))).code == "image.data_file"


async def test_unknown_feature(good: Path) -> None:
    """An incompatible feature that nobody here knows is refused."""
    error = await _refused(_patch(good, 72, struct.pack(">Q", 1 << 17)))
    assert error.code == "image.corrupt"
    assert "0x20000" in error.message


async def test_marked_corrupt(good: Path) -> None:
    """An image that QEMU marked as corrupt is refused."""
    assert (await _refused(_patch(good, 72, struct.pack(">Q", 1 << 1)))).code == "image.corrupt"


async def test_luks_in_qcow2(tmp_path: Path) -> None:
    """An encrypted qcow2 image is refused."""
    path = tmp_path / "image"
    qemu_img(
        *("create", "-f", "qcow2", "--object", "secret,id=s,data=secret"),
        *("-o", "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10", path, "1M"),
    )
    assert (await _refused(path)).code == "image.encrypted"
    with pytest.raises(inspection.ImageEncrypted):  # by its header alone
        await inspect(path, describe(), SETTINGS, qemu_img="/nonexistent")


async def test_luks_declared_raw(tmp_path: Path) -> None:
    """A LUKS volume is no raw disk."""
    path = tmp_path / "image"
    path.write_bytes(b"LUKS\xba\xbe\x00\x01" + bytes(MIB))
    error = await _refused(path, disk_format="raw")
    assert error.code == "image.format_mismatch"
    assert "'luks'" in error.message


@pytest.mark.parametrize("kind", ["qcow2", "qcow", "qed", "vmdk", "vdi", "vpc", "vhdx", "parallels"])
async def test_declared_raw_but_not(tmp_path: Path, kind: str) -> None:
    """Content that QEMU would take for another format is refused where Glance says raw."""
    path = tmp_path / "image"
    qemu_img("create", "-f", kind, path, "64M")
    error = await _refused(path, disk_format="raw")
    assert error.code == "image.format_mismatch"
    assert "'raw'" in error.message


async def test_vmdk_descriptor_declared_raw(tmp_path: Path) -> None:
    """A VMDK text, which names files of the host as its extents, is refused where Glance says raw."""
    path = tmp_path / "image"
    text = b'# a comment\n\n version=1\nCID=1\nparentCID=ffffffff\nRW 63 FLAT "/etc/passwd" 0\n'
    path.write_bytes(text + bytes(512))
    assert (await _refused(path, disk_format="raw")).code == "image.format_mismatch"


async def test_fixed_vhd_declared_raw(tmp_path: Path) -> None:
    """A fixed VHD, known by its last sector alone, is refused where Glance says raw."""
    path = tmp_path / "image"
    qemu_img("create", "-f", "vpc", "-o", "subformat=fixed", path, "4M")
    assert (await _refused(path, disk_format="raw")).code == "image.format_mismatch"


async def test_declared_qcow2_but_raw(tmp_path: Path) -> None:
    """Raw content is refused where Glance says qcow2."""
    path = tmp_path / "image"
    path.write_bytes(bytes(MIB))
    error = await _refused(path)
    assert error.code == "image.format_mismatch"
    assert "declared as 'qcow2', but its content is 'raw'" in error.message


@pytest.mark.parametrize("size", [0, 4, 60, 80, 104, 512, 70_000, 300_000, 700_000])
async def test_truncated(good: Path, size: int) -> None:
    """An image cut off anywhere is refused."""
    assert good.stat().st_size > size
    with good.open("r+b") as file:
        file.truncate(size)
    assert (await _refused(good)).code in {"image.corrupt", "image.format_mismatch"}


@pytest.mark.parametrize(
    ("offset", "content"),
    [
        (4, struct.pack(">I", 9)),  # version
        (20, struct.pack(">I", 63)),  # cluster_bits
        (24, struct.pack(">Q", 1 << 63)),  # size
        (36, struct.pack(">I", 0xFFFFFFFF)),  # l1_size
        (40, struct.pack(">Q", 0x7FFFFFFFFFFFFF00)),  # l1_table_offset
        (48, struct.pack(">Q", 12345)),  # refcount_table_offset
        (56, struct.pack(">I", 0xFFFFFFFF)),  # refcount_table_clusters
        (60, struct.pack(">I", 0xFFFFFFFF)),  # nb_snapshots
        (100, struct.pack(">I", 0xFFFFFFF0)),  # header_length
        (112, struct.pack(">II", 0x6803F857, 0xFFFFFFF0)),  # a header extension's length
    ],
)
async def test_corrupt_header(good: Path, offset: int, content: bytes) -> None:
    """Each field of the header that is out of bounds is refused."""
    assert (await _refused(_patch(good, offset, content))).code == "image.corrupt"


async def test_corrupt_tables(good: Path) -> None:
    """Damage behind the header, which only a walk through the tables shows, is refused."""
    (l1_offset,) = struct.unpack(">Q", good.read_bytes()[40:48])
    _patch(good, l1_offset, struct.pack(">Q", (1 << 63) | 0x0000_00FF_FFFF_0000))
    assert (await _refused(good)).code == "image.corrupt"


async def test_leaked_clusters_are_harmless(good: Path) -> None:
    """An image with space that nobody refers to is accepted."""
    with good.open("r+b") as file:
        l1_offset = int.from_bytes(good.read_bytes()[40:48], "big")
        file.seek(l1_offset)
        file.write(bytes(8))
    assert (await inspect(good, describe(), SETTINGS)).virtual_size == 64 * MIB


async def test_inspection_has_a_time_limit(good: Path, tmp_path: Path) -> None:
    """A judgement that takes too long ends in an error that may be tried again."""
    slow = tmp_path / "qemu-img"
    slow.write_text("#!/bin/sh\nsleep 60\n")
    slow.chmod(0o755)
    started = time.monotonic()
    with pytest.raises(inspection.ImageInspectionTimeout) as caught:
        await inspect(good, describe(), ImagesSection(inspect_timeout=0.3), qemu_img=str(slow))
    assert caught.value.retryable
    assert time.monotonic() - started < 5


async def test_second_reader_is_heard(good: Path, tmp_path: Path) -> None:
    """What our own reader missed and qemu-img reports is refused."""
    for report, code in (
        ('{"virtual-size": 1, "format": "qcow2", "backing-filename": "/x"}', "image.backing_file"),
        ('{"virtual-size": 1, "format": "vmdk"}', "image.format_mismatch"),
        ('{"virtual-size": 1, "format": "qcow2", "encrypted": true}', "image.encrypted"),
        ('{"virtual-size": 1, "format": "qcow2", "format-specific": {"data": {"data-file": "/x"}}}', "image.data_file"),
        ('{"virtual-size": 1, "format": "qcow2", "format-specific": {"data": {"corrupt": true}}}', "image.corrupt"),
        ('{"format": "qcow2"}', "image.corrupt"),
        ("[]", "image.corrupt"),
        ("nonsense", "image.corrupt"),
    ):
        told = tmp_path / "qemu-img"
        told.write_text(f"#!/bin/sh\necho '{report}'\n")
        told.chmod(0o755)
        with pytest.raises(ImageError) as caught:
            await inspect(good, describe(), SETTINGS, qemu_img=str(told))
        assert caught.value.code == code, report


_HEADER_BYTES = st.lists(
    st.tuples(st.integers(0, 639), st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]) | st.integers(0, 255)),
    min_size=1,
    max_size=12,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=_HEADER_BYTES, length=st.none() | st.integers(0, 1024))
def test_mutated_headers(good: Path, tmp_path: Path, changes: list[tuple[int, int]], length: int | None) -> None:
    """Whatever the header is changed to, the outcome is a verdict, in time, and never another error."""
    content = bytearray(good.read_bytes())
    for offset, value in changes:
        content[offset] = value
    path = tmp_path / "mutated"
    path.write_bytes(content[:length])
    limits = ImagesSection(inspect_timeout=10, inspect_memory_mb=256)
    started = time.monotonic()
    try:
        found = asyncio.run(inspect(path, describe(), limits))
    except ImageError as error:
        assert error.code.startswith("image.")  # noqa: PT017 - both outcomes are right
    else:
        header = read_header(path)
        assert (header.backing_file, header.data_file, header.encrypted) == (None, None, False)
        assert found.virtual_size == header.virtual_size
    assert time.monotonic() - started < 12


@settings(max_examples=500)
@given(st.binary(max_size=300), st.sampled_from([b"", b"QFI\xfb\0\0\0\2", b"QFI\xfb\0\0\0\3"]))
def test_header_reader_never_fails_otherwise(rest: bytes, magic: bytes) -> None:
    """Any bytes are a header or a ``BadHeader``."""
    with contextlib.suppress(BadHeader):
        parse_header(magic + rest)


def test_declared_good() -> None:
    """An active bare qcow2 image that demands no more than the flavor has is worth its download."""
    check_declared(describe(min_ram=512, min_disk=1, virtual_size=GIB), FLAVOR)


@pytest.mark.parametrize(
    ("changes", "code", "field", "text"),
    [
        ({"status": "queued"}, "image.inactive", "image.status", "'queued'"),
        ({"status": "deactivated"}, "image.inactive", "image.status", "'deactivated'"),
        ({"disk_format": "vmdk"}, "image.format_unsupported", "image.disk_format", "'vmdk'"),
        ({"disk_format": "iso"}, "image.format_unsupported", "image.disk_format", "'iso'"),
        ({"disk_format": None}, "image.format_unsupported", "image.disk_format", "not set"),
        ({"container_format": "ova"}, "image.format_unsupported", "image.container_format", "'ova'"),
        ({"min_ram": 513}, "image.flavor_too_small", "flavor.ram", "RAM of at least 513 MiB"),
        ({"min_disk": 2}, "image.flavor_too_small", "flavor.disk", "disk of at least 2 GiB"),
        ({"virtual_size": GIB + 1}, "image.too_large", "flavor.disk", "disk of at least 2 GiB"),
    ],
)
def test_declared_bad(changes: dict[str, Any], code: str, field: str, text: str) -> None:
    """What Glance's description alone rules out is refused with the field and the remedy."""
    with pytest.raises((ImageError, RequestRefused)) as caught:
        check_declared(describe(**changes), FLAVOR)
    assert (caught.value.code, caught.value.field) == (code, field)
    assert text in str(caught.value)


async def test_virtual_size_over_the_flavors_disk(tmp_path: Path) -> None:
    """A small file with a large virtual disk is refused by what was found in it."""
    found = await inspect(make_qcow2(tmp_path / "image", size="1025M"), describe(), SETTINGS)
    with pytest.raises(ImageTooLarge, match="at least 2 GiB"):
        check_fits(found.virtual_size, describe(), FLAVOR)
    check_fits(GIB, describe(), FLAVOR)
