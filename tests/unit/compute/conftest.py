"""A host at work, for the tests of what it does with requests."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.unit.compute.scripted_host import Host, start


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    running = start(tmp_path / "instances")
    yield running
    running.builder.go.set()
    running.power.go.set()
    await running.stop()
