from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.compute_api import InProcessApi, file_database, serving


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[InProcessApi]:
    async with serving(await file_database(tmp_path)) as api:
        yield api
