"""Whoever hears a host's notifications, in the broker's place."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from sev_agent.compute.outbox import Outbox
from sev_agent.messaging import envelope
from sev_agent.messaging.broker import BrokerUnavailable
from sev_agent.messaging.envelope import Notification, Priority

PATIENCE = 60.0
"""Seconds for what takes milliseconds on an idle machine."""


class Listener:
    """Takes notifications while it ``can_send``; while ``holding`` is not set, it keeps them unconfirmed."""

    def __init__(self) -> None:
        self.can_send = True
        self.holding = asyncio.Event()
        self.holding.set()
        self.began = asyncio.Event()
        self.taken: asyncio.Queue[Notification] = asyncio.Queue()

    async def publish(self, body: bytes, priority: Priority) -> None:
        self.began.set()
        if not self.can_send:
            raise BrokerUnavailable("not connected")
        await self.holding.wait()
        heard = envelope.decode_notification(envelope.unpack(body, max_bytes=len(body)))
        assert heard.priority is priority
        self.taken.put_nowait(heard)

    async def next(self) -> Notification:
        async with asyncio.timeout(PATIENCE):
            return await self.taken.get()

    @contextlib.asynccontextmanager
    async def hearing(self, outbox: Outbox) -> AsyncIterator[None]:
        """Run ``outbox``, and stop it at the end as the daemon does."""
        task = asyncio.create_task(outbox.run())
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait_for(task, PATIENCE)
