"""Waiting for what other processes bring about, always within a bound."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")


async def eventually(look: Callable[[], Awaitable[T]], *, within: float, what: str, every: float = 0.05) -> T:
    """The first true answer of ``look``. Fails with ``what`` and the last answer after ``within`` seconds."""
    deadline = time.monotonic() + within
    while True:
        answer = await look()
        if answer:
            return answer
        assert time.monotonic() < deadline, f"{what}: not within {within:g} s; last seen: {answer!r}"
        await asyncio.sleep(every)
