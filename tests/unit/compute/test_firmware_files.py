# ruff: noqa: ASYNC240 - a test may block its own loop for a moment
import hashlib
import stat
from pathlib import Path

import pytest

from sev_agent.compute.firmware_files import FirmwareTemplateMissing, FirmwareUnreadable, create_nvram, firmware_digest


@pytest.fixture
def template(tmp_path: Path) -> Path:
    path = tmp_path / "VARS.fd"
    path.write_bytes(b"template" * 100)
    return path


async def test_copy(template: Path, tmp_path: Path) -> None:
    """The guest gets its own, private copy."""
    await create_nvram(template, tmp_path / "nvram")
    assert (tmp_path / "nvram").read_bytes() == template.read_bytes()
    assert stat.S_IMODE((tmp_path / "nvram").stat().st_mode) == 0o600


async def test_what_the_guest_wrote_stays(template: Path, tmp_path: Path) -> None:
    """The step run again keeps a copy of the right size, with its boot entries in it."""
    (tmp_path / "nvram").write_bytes(b"boot    " * 100)
    await create_nvram(template, tmp_path / "nvram")
    assert (tmp_path / "nvram").read_bytes() == b"boot    " * 100


async def test_half_a_copy_is_replaced(template: Path, tmp_path: Path) -> None:
    """A copy of another size is no copy."""
    (tmp_path / "nvram").write_bytes(b"half")
    await create_nvram(template, tmp_path / "nvram")
    assert (tmp_path / "nvram").read_bytes() == template.read_bytes()


async def test_missing_template_is_explained(tmp_path: Path) -> None:
    """Without the template the error names the file and the package, and nothing is left."""
    with pytest.raises(FirmwareTemplateMissing, match=r"VARS\.fd.*ovmf"):
        await create_nvram(tmp_path / "VARS.fd", tmp_path / "nvram")
    assert not list(tmp_path.iterdir())


async def test_digest(template: Path, tmp_path: Path) -> None:
    """Firmware is known by its SHA-256; what cannot be read is told with what to do."""
    assert await firmware_digest(template) == hashlib.sha256(template.read_bytes()).hexdigest()
    with pytest.raises(FirmwareUnreadable, match="install the package"):
        await firmware_digest(tmp_path / "gone")
