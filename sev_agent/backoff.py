"""Pauses between attempts at what others may be down for."""

import asyncio
import random


class Backoff:
    """Pauses that double from ``first`` to ``longest`` seconds, each cut by up to half, at random."""

    def __init__(self, first: float, longest: float) -> None:
        self._first = first
        self._longest = longest
        self._next = first

    def reset(self) -> None:
        """Begin with ``first`` again, since an attempt was of use."""
        self._next = self._first

    async def pause(self) -> None:
        """Wait before the next attempt."""
        seconds = random.uniform(self._next / 2, self._next)
        self._next = min(self._next * 2, self._longest)
        await asyncio.sleep(seconds)
