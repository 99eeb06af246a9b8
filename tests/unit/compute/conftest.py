"""A host at work, and a journal alone, for the tests of what is done with requests and written of them."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sev_agent.compute.record_store import RecordStore
from tests.journal import opened
from tests.unit.compute.scripted_host import Host, start


@pytest.fixture
def store(tmp_path: Path) -> RecordStore:
    return opened(tmp_path / "instances")


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    running = start(tmp_path / "instances")
    yield running
    running.builder.go.set()
    running.power.go.set()
    await running.stop()
