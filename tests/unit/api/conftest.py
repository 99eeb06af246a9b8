from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sev_agent.config import DatabaseSection
from tests.compute_api import InProcessApi, file_database, serving


@pytest.fixture
async def settings(tmp_path: Path) -> DatabaseSection:
    """A database with tables, which are empty."""
    return await file_database(tmp_path)


@pytest.fixture
async def api(settings: DatabaseSection) -> AsyncIterator[InProcessApi]:
    async with serving(settings) as api:
        yield api
