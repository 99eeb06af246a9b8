from collections.abc import AsyncIterator

import pytest

from tests.libvirt_host import PATIENCE, Host, running_host


@pytest.fixture
async def host() -> AsyncIterator[Host]:
    """Connected to libvirt's in-process driver, which really keeps domains and really sends events."""
    async with running_host() as host:
        await host.hypervisor.wait_up(PATIENCE)
        assert await host.next_change()
        yield host
