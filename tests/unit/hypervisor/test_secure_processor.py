"""The secure processor's answers."""

import stat
import struct
from pathlib import Path

import pytest

from sev_agent.hypervisor.host_files import HostFiles
from sev_agent.hypervisor.secure_processor import _ISSUE, Command, Status, _decode, platform_status


def captured(root: Path, text: str) -> HostFiles:
    (root / "dev").mkdir()
    (root / "dev/sev").write_text(text)
    return HostFiles(root)


def test_the_request_is_the_kernels() -> None:
    """``_IOWR('S', 0, struct sev_issue_cmd)``, of 16 bytes: the command, a pointer and the firmware's error."""
    assert struct.calcsize("=IQI") == 16
    assert (3 << 30 | 16 << 16 | ord("S") << 8) == _ISSUE


def test_the_answers_layout() -> None:
    """The fields stand where ``psp-sev.h`` has them, without gaps."""
    sev = struct.pack("=BBBIBI", 1, 55, 2, 0xFFFF_FFFF, 24, 3)
    assert len(sev) == 12
    assert _decode(Command.SEV_PLATFORM_STATUS, sev) == Status(api_major=1, api_minor=55, build=24, state=2, guests=3)
    snp = struct.pack("=BBBBIIIQQ", 1, 55, 1, 1, 39, 0, 7, 0, 0)
    assert len(snp) == 32
    assert _decode(Command.SNP_PLATFORM_STATUS, snp) == Status(api_major=1, api_minor=55, build=39, state=1, guests=7)


def test_a_captured_answer(tmp_path: Path) -> None:
    """The fields of the status, for each of the two questions."""
    files = captured(tmp_path, "[sev]\napi_major = 1\napi_minor = 55\nbuild = 24\nstate = 1\nguests = 3\n")
    status = platform_status(files, Command.SEV_PLATFORM_STATUS)
    assert (status.api, status.state_name, status.guests) == ("1.55", "init", 3)
    with pytest.raises(OSError, match="no answer was captured"):
        platform_status(files, Command.SNP_PLATFORM_STATUS)


@pytest.mark.parametrize("text", ["", "not toml", "[sev]\nerror = 'EIO'", "[sev]\nwhat = 1", "sev = 3"])
def test_an_answer_that_is_none(tmp_path: Path, text: str) -> None:
    """It is an error of reading, as the device's own are."""
    with pytest.raises(OSError, match=r"SEV_PLATFORM_STATUS|dev/sev"):
        platform_status(captured(tmp_path, text), Command.SEV_PLATFORM_STATUS)


def test_an_absent_device(tmp_path: Path) -> None:
    """Which is another fault than one that does not answer."""
    with pytest.raises(FileNotFoundError):
        platform_status(HostFiles(tmp_path), Command.SEV_PLATFORM_STATUS)


def test_a_device_that_is_no_secure_processor() -> None:
    """The request is refused by the kernel, and the refusal names the question."""
    root = Path("/")
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)

    class NullDevice(HostFiles):
        def resolve(self, path: str) -> Path:
            return Path("/dev/null") if path == "dev/sev" else super().resolve(path)

    with pytest.raises(OSError, match="SEV_PLATFORM_STATUS failed: Inappropriate ioctl"):
        platform_status(NullDevice(root), Command.SEV_PLATFORM_STATUS)
