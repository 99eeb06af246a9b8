"""The guest image's cache: what is taken from it, without asking apt."""

from pathlib import Path

import pytest

from sev_agent.lab.platform import guest_image
from sev_agent.lab.platform.guest_image import GuestImageError, build_guest_image


@pytest.fixture(autouse=True)
def _no_programs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A build would need apt."""
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))


async def test_an_image_of_the_same_recipe_is_taken(tmp_path: Path) -> None:
    """Whatever packages it was made of, and with neither apt nor its lists."""
    made = tmp_path / f"sev-agent-guest-{guest_image._recipe()}-0123456789abcdef.qcow2"
    made.touch()
    assert await build_guest_image(tmp_path, lambda _: None) == made


async def test_an_image_of_another_recipe_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A change of what the guest consists of makes a new image."""
    (tmp_path / f"sev-agent-guest-{guest_image._recipe()}-0123456789abcdef.qcow2").touch()
    monkeypatch.setattr(guest_image, "_COMMAND_LINE", "quiet")
    with pytest.raises(GuestImageError, match="apt-cache is missing"):
        await build_guest_image(tmp_path, lambda _: None)
