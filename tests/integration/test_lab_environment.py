"""The environment of the OpenStack services, made with the real tools."""

import asyncio
from pathlib import Path

import pytest

from sev_agent.lab import environment
from sev_agent.lab.service import LabError


@pytest.fixture(autouse=True)
def nothing_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Requirements that need no package index."""
    path = tmp_path / "requirements.txt"
    path.touch()
    monkeypatch.setattr(environment, "REQUIREMENTS", path)
    return path


async def test_two_labs_make_one_environment(tmp_path: Path) -> None:
    """The second waits for the first, and uses what it made."""
    said: list[str] = []
    made = await asyncio.gather(*(environment.provide(tmp_path, said.append) for _ in range(2)))
    assert made[0] == made[1]
    assert (made[0] / "bin/python").exists()
    assert said.count("creating") == 1
    assert any("waiting" in line for line in said)


async def test_half_an_environment_is_made_anew(tmp_path: Path) -> None:
    """What an interrupted run left is not taken for whole."""
    half = environment.location(tmp_path) / "bin/half"
    half.parent.mkdir(parents=True)
    half.touch()
    home = await environment.provide(tmp_path, lambda _: None)
    assert not half.exists()
    assert (home / "bin/python").exists()


def test_a_failing_installer_says_why(tmp_path: Path, nothing_to_install: Path) -> None:
    """The error has its last lines, and nothing is taken for made."""
    nothing_to_install.write_text("this is not a requirement\n")
    with pytest.raises(LabError, match=r"(?s)failed with status 1.*Invalid requirement"):
        asyncio.run(environment.provide(tmp_path, lambda _: None))
    assert not (environment.location(tmp_path) / "complete").exists()
