"""Pauses between attempts."""

import asyncio

import pytest

from sev_agent.backoff import Backoff


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that were made, of no length."""
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    return pauses


async def test_grows_to_its_bound_and_begins_again(slept: list[float]) -> None:
    """Each pause is at most twice the one before, at most the longest, and at least half of that."""
    backoff = Backoff(0.1, 0.5)
    for _ in range(5):
        await backoff.pause()
    backoff.reset()
    await backoff.pause()

    for seconds, most in zip(slept, (0.1, 0.2, 0.4, 0.5, 0.5, 0.1), strict=True):
        assert most / 2 <= seconds <= most
