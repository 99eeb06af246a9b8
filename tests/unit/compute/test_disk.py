# ruff: noqa: ASYNC240 - a test may block its own loop for a moment
import asyncio
import json
import os
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest

from sev_agent.compute import disk
from sev_agent.compute.disk import create_disk
from sev_agent.compute.image_cache import CachedImage
from sev_agent.sev.image_form import DiskFormat
from tests.images import MIB, make_qcow2

GIB = 1024**3


@pytest.fixture
def base(tmp_path: Path) -> CachedImage:
    return CachedImage(make_qcow2(tmp_path / "base, with=odd characters"), DiskFormat.QCOW2, 64 * MIB)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    instance = tmp_path / "instance"
    instance.mkdir()
    return instance / "disk"


def _names(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir()]


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_ino, status.st_mtime_ns


def _info(path: Path) -> Any:
    argv = ["qemu-img", "info", "--output=json", "--backing-chain", str(path)]
    return json.loads(subprocess.run(argv, check=True, capture_output=True).stdout)


async def test_overlay_of_the_flavors_size(path: Path, base: CachedImage) -> None:
    """The disk is a qcow2 overlay of the flavor's size over the image, for the daemon alone to read."""
    await create_disk(path, base, 2)
    top, below = _info(path)
    assert (top["format"], top["virtual-size"]) == ("qcow2", 2 * GIB)
    assert (top["full-backing-filename"], top["backing-filename-format"]) == (str(base.path), "qcow2")
    assert below["virtual-size"] == 64 * MIB
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert _names(path.parent) == ["disk"]


async def test_overlay_over_raw(path: Path, tmp_path: Path) -> None:
    """A raw image is named as raw, so that QEMU never guesses its format."""
    (tmp_path / "raw").write_bytes(bytes(MIB))
    await create_disk(path, CachedImage(tmp_path / "raw", DiskFormat.RAW, MIB), 1)
    assert _info(path)[0]["backing-filename-format"] == "raw"


async def test_again_keeps_the_disk(path: Path, base: CachedImage) -> None:
    """The step run again leaves a right disk as it is."""
    await create_disk(path, base, 1)
    before = _identity(path)
    await create_disk(path, base, 1)
    assert _identity(path) == before


async def test_a_disk_that_belongs_to_qemu_is_kept(
    path: Path, base: CachedImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that only QEMU's user may read is not replaced: its guest may be running."""
    await create_disk(path, base, 1)
    before = _identity(path)

    def refuse(_: Path) -> None:
        raise PermissionError

    monkeypatch.setattr(disk, "read_header", refuse)
    await create_disk(path, base, 1)
    assert _identity(path) == before


@pytest.mark.parametrize("content", [b"", b"half made", b"QFI\xfb\0\0\0\3" + bytes(200)])
async def test_damaged_disk_is_replaced(path: Path, base: CachedImage, content: bytes) -> None:
    """What is not a whole disk is made anew."""
    path.write_bytes(content)
    await create_disk(path, base, 1)
    assert _info(path)[0]["virtual-size"] == GIB


async def test_disk_of_another_size_is_replaced(path: Path, base: CachedImage) -> None:
    """A disk that does not fit the request is made anew."""
    await create_disk(path, base, 1)
    await create_disk(path, base, 3)
    assert _info(path)[0]["virtual-size"] == 3 * GIB


async def test_missing_base_is_explained(path: Path, tmp_path: Path) -> None:
    """What qemu-img says is in the error, and nothing is left."""
    with pytest.raises(disk.DiskFailed, match="No such file") as caught:
        await create_disk(path, CachedImage(tmp_path / "gone", DiskFormat.QCOW2, 1), 1)
    assert caught.value.retryable
    assert _names(path.parent) == []


async def test_cancellation_leaves_nothing(path: Path, base: CachedImage, tmp_path: Path) -> None:
    """A build that is cancelled here leaves no half-made disk."""
    slow, started = tmp_path / "qemu-img", tmp_path / "started"
    os.mkfifo(started)
    slow.write_text(f'#!/bin/sh\nfor last; do file=$size; size=$last; done\n: > "$file"; echo > {started}; sleep 60\n')
    slow.chmod(0o755)
    task = asyncio.create_task(create_disk(path, base, 1, qemu_img=str(slow)))
    await asyncio.to_thread(started.read_text)
    assert len(_names(path.parent)) == 1
    task.cancel()
    await asyncio.wait({task})
    assert task.cancelled()
    assert _names(path.parent) == []


async def test_what_a_kill_left_half_made_is_replaced(path: Path, base: CachedImage) -> None:
    """A disk that a killed daemon was making is made anew under its name, and nothing lies beside it."""
    path.with_name(".disk.new").write_bytes(b"half a disk")
    await create_disk(path, base, 2)
    assert _names(path.parent) == ["disk"]
    assert _info(path)[0]["virtual-size"] == 2 * GIB
