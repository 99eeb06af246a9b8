"""What could not be written is tried again: soon, or once there may be room."""

import asyncio
from collections.abc import Collection
from uuid import UUID, uuid4

import pytest

from sev_agent.compute import postponed as module
from sev_agent.compute.postponed import Postponed
from sev_agent.errors import Unavailable
from sev_agent.openstack.placement import Full

AWAY = Unavailable("Placement is away")
FULL = Full("no slot is free")


class Tries:
    """What was given back to be tried."""

    def __init__(self) -> None:
        self.given: asyncio.Queue[frozenset[UUID]] = asyncio.Queue()
        self.postponed = Postponed(self.again)

    def again(self, uuids: Collection[UUID]) -> None:
        self.given.put_nowait(frozenset(uuids))


@pytest.fixture
def tries(monkeypatch: pytest.MonkeyPatch) -> Tries:
    monkeypatch.setattr(module, "_RETRY_SECONDS", 0.01)
    return Tries()


async def test_soon(tries: Tries) -> None:
    """What failed is tried again after a pause; what Placement has no room for is not."""
    away, full = uuid4(), uuid4()
    begun = tries.postponed.begin({away, full})
    tries.postponed.add({away: AWAY, full: FULL}, since=begun)

    async with asyncio.timeout(30):
        assert await tries.given.get() == {away}
    await asyncio.sleep(0.05)
    assert tries.given.empty()


async def test_room(tries: Tries) -> None:
    """What was refused is tried each time that something was given back, until it is tried by itself."""
    full = uuid4()
    tries.postponed.made_room()
    tries.postponed.add({full: FULL}, since=tries.postponed.begin({full}))
    assert tries.given.empty()

    tries.postponed.made_room()
    assert tries.given.get_nowait() == {full}
    tries.postponed.begin({full})
    tries.postponed.made_room()
    assert tries.given.empty()


async def test_room_during_the_refusal(tries: Tries) -> None:
    """What was given back while an instance was being refused may be its room: it is tried again."""
    full = uuid4()
    begun = tries.postponed.begin({full})
    tries.postponed.made_room()
    assert tries.given.empty()

    tries.postponed.add({full: FULL}, since=begun)
    assert tries.given.get_nowait() == {full}
