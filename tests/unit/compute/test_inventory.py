"""What a host has to give is read from a disk that may not answer."""

import shutil
import threading
from pathlib import Path

import pytest

from sev_agent.compute import inventory
from sev_agent.compute.inventory import Disk, DiskUnreadable


async def test_size(tmp_path: Path) -> None:
    """The size is that of the whole disk, free or not."""
    assert await Disk(tmp_path).size_gb() == shutil.disk_usage(tmp_path).total // 2**30


async def test_away(tmp_path: Path) -> None:
    """A directory that is not there is named, with what to do."""
    with pytest.raises(DiskUnreadable, match=r"away cannot be read: No such file") as caught:
        await Disk(tmp_path / "away").size_gb()
    assert caught.value.remedy


async def test_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that hangs is given up after a while, and not asked by one thread more each time."""
    asked: list[Path] = []
    may_answer = threading.Event()

    def hangs(path: Path) -> None:
        asked.append(path)
        may_answer.wait(60)

    monkeypatch.setattr(shutil, "disk_usage", hangs)
    monkeypatch.setattr(inventory, "_ANSWER_SECONDS", 0.01)
    disk = Disk(tmp_path)
    for _ in range(2):
        with pytest.raises(DiskUnreadable, match=r"no answer within 0\.01 s"):
            await disk.size_gb()
    may_answer.set()
    assert asked == [tmp_path]
