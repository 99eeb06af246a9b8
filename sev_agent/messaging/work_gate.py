"""Whether a daemon takes work: its queue is consumed only while it can be done."""

import asyncio
from collections.abc import Callable

from sev_agent.messaging.server import RpcServer


class WorkGate:
    """Takes work only while ``is_open`` says so: without a consumer, the broker itself knows that this daemon cannot.

    A host needs libvirt, and a Placement that has come to know it, since the daemon began, to claim from; a scheduler
    needs Placement.
    """

    def __init__(self, work: RpcServer, *, is_open: Callable[[], bool]) -> None:
        self._work = work
        self._is_open = is_open
        self._moved = asyncio.Event()

    def look(self) -> None:
        """Note that ``is_open`` may say something else than before."""
        self._moved.set()

    async def run(self) -> None:
        """Open and close until cancelled."""
        while True:
            await self._moved.wait()
            self._moved.clear()
            if self._is_open():
                await self._work.resume()
            else:
                await self._work.pause()
