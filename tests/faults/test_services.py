"""Services that are killed, stopped or cut off in the middle of work: nothing is lost, counted wrong or left behind."""

import pytest

from tests.faults.conftest import World

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_nothing_breaks(world: World) -> None:
    """Without a fault the invariants hold, of a guest that runs, of one that failed, and of one that is deleted."""
    await world.build()
    await world.begin(image__id="00000000-0000-4000-8000-000000000000")
    gone = await world.build()
    await world.delete(gone)
    states = await world.hold()
    assert sorted(states.values()) == ["active", "deleted", "error"]
