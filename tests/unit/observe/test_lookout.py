"""Services that are needed now and then are looked at before that."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from sev_agent.errors import Unavailable
from sev_agent.observe import lookout as module
from sev_agent.observe.health import Dependency, Health
from sev_agent.observe.lookout import Lookout


class Service:
    """Answers, or does not; ``asked`` tells of each question."""

    def __init__(self) -> None:
        self.fault: Exception | None = None
        self.hangs = False
        self.asked: asyncio.Queue[None] = asyncio.Queue()

    async def question(self) -> None:
        self.asked.put_nowait(None)
        if self.hangs:
            await asyncio.Event().wait()
        if self.fault is not None:
            raise self.fault

    async def next(self) -> None:
        async with asyncio.timeout(60):
            await self.asked.get()


class Changes:
    """The health, and each change of it."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[tuple[bool, str]] = asyncio.Queue()
        self.health = Health([Dependency.GLANCE, Dependency.KEYSTONE], on_change=self._note)

    def _note(self) -> None:
        condition = self.health.conditions[Dependency.GLANCE]
        self.queue.put_nowait((condition.up, condition.reason))

    async def next(self) -> tuple[bool, str]:
        async with asyncio.timeout(60):
            return await self.queue.get()


@contextlib.asynccontextmanager
async def looking(service: Service, health: Health, *, interval: float = 3600) -> AsyncIterator[Lookout]:
    lookout = Lookout({Dependency.GLANCE: service.question}, health, interval=interval)
    task = asyncio.create_task(lookout.run())
    try:
        yield lookout
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@pytest.fixture
def changes() -> Changes:
    return Changes()


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_AGAIN_SECONDS", 0.01)
    monkeypatch.setattr(module, "_ANSWER_SECONDS", 0.05)


async def test_at_start(changes: Changes) -> None:
    """A service is asked at once, and nothing is said of one that nobody asks."""
    async with looking(Service(), changes.health):
        assert await changes.next() == (True, "")
    assert changes.health.conditions[Dependency.KEYSTONE].reason == "not connected yet"


async def test_comes_back(changes: Changes) -> None:
    """One that is away is down with the reason, asked again soon, and up when it answers."""
    service = Service()
    service.fault = Unavailable("glance is not there")
    async with looking(service, changes.health):
        assert await changes.next() == (False, "glance is not there")
        await service.next()
        await service.next()
        service.fault = None
        assert await changes.next() == (True, "")


async def test_hangs(changes: Changes) -> None:
    """One that hangs is down, named."""
    service = Service()
    service.hangs = True
    async with looking(service, changes.health):
        assert await changes.next() == (False, "glance did not answer within 0.05 s")


async def test_doubt(changes: Changes) -> None:
    """One that somebody saw fail is asked at once; a doubt about one that is not watched is no harm."""
    service = Service()
    async with looking(service, changes.health) as lookout:
        assert await changes.next() == (True, "")
        service.fault = Unavailable("gone")
        lookout.doubt(Dependency.KEYSTONE)
        lookout.doubt(Dependency.GLANCE)
        assert await changes.next() == (False, "gone")


async def test_interval(changes: Changes) -> None:
    """One that answers is asked again after the interval."""
    service = Service()
    async with looking(service, changes.health, interval=0.01):
        for _ in range(3):
            await service.next()
