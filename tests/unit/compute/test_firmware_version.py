"""The secure processor is asked for its version, and never waited for without end."""

import asyncio
import threading
from pathlib import Path

import pytest

from sev_agent.compute import firmware_version
from sev_agent.compute.firmware_version import FirmwareVersion

ANSWER = "[sev]\napi_major = 1\napi_minor = {minor}\nbuild = 21\nstate = 1\nguests = 0\n"


async def test_version(tmp_path: Path) -> None:
    """It is what the device says now: not known without one, and another one after an update."""
    asked = FirmwareVersion(tmp_path)
    assert await asked.read() is None
    (tmp_path / "dev").mkdir()
    for minor in (51, 55):
        (tmp_path / "dev/sev").write_text(ANSWER.format(minor=minor))
        assert await asked.read() == (1, minor)
    (tmp_path / "dev/sev").write_text("[sev]\nerror = 'Input/output error'\n")
    assert await asked.read() is None


async def test_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The version of a processor that hangs is not known."""
    release = threading.Event()

    def hangs(_: object) -> tuple[int, int]:
        release.wait(60)
        return 1, 55

    monkeypatch.setattr(firmware_version, "_ANSWER_SECONDS", 0.01)
    monkeypatch.setattr(FirmwareVersion, "_ask", hangs)
    assert await FirmwareVersion(tmp_path).read() is None
    release.set()


async def test_asked_by_several(tmp_path: Path) -> None:
    """A comparison and whoever asks for one by hand get the same answer."""
    asked = FirmwareVersion(tmp_path)
    assert await asyncio.gather(*(asked.read() for _ in range(3))) == [None] * 3
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/sev").write_text(ANSWER.format(minor=55))
    assert await asyncio.gather(*(asked.read() for _ in range(3))) == [(1, 55)] * 3
