"""A configuration that a daemon can start with."""

from pathlib import Path

import pytest


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "sev-agent.toml"
    path.write_text('[auth]\nauth_url = "http://keystone.example:5000/v3"\n')
    return path
