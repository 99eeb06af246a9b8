"""All notifications of the cloud, kept from the moment of listening on."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from uuid import UUID

from sev_agent.messaging.broker import Broker
from sev_agent.messaging.envelope import Notification
from sev_agent.messaging.notifications import subscribe

MAX_BYTES = 4 * 1024 * 1024


class Ear:
    """What was heard so far."""

    def __init__(self) -> None:
        self.heard: list[Notification] = []
        self._more = asyncio.Condition()

    async def take(self, arriving: AsyncIterator[Notification]) -> None:
        async for notification in arriving:
            async with self._more:
                self.heard.append(notification)
                self._more.notify_all()

    def about(self, uuid: UUID | str, event_type: str = "") -> list[Notification]:
        return [
            each
            for each in self.heard
            if each.payload.get("instance_uuid") == str(uuid) and each.event_type.endswith(event_type)
        ]

    async def more(self, *, within: float = 30) -> None:
        """Wait for the next notification, whatever it is."""
        known = len(self.heard)
        async with asyncio.timeout(within), self._more:
            await self._more.wait_for(lambda: len(self.heard) > known)

    async def hear(self, uuid: UUID | str, event_type: str, *, within: float = 30) -> Notification:
        """The first notification ``event_type`` about the instance."""

        async def heard() -> Notification:
            async with self._more:
                while not (found := self.about(uuid, event_type)):
                    await self._more.wait()
                return found[0]

        try:
            return await asyncio.wait_for(heard(), within)
        except TimeoutError:
            raise AssertionError(
                f"no {event_type} of {uuid} within {within:g} s; heard {[e.event_type for e in self.about(uuid)]}"
            ) from None


@contextlib.asynccontextmanager
async def listening(broker: Broker) -> AsyncIterator[Ear]:
    ear = Ear()
    async with subscribe(broker, max_message_bytes=MAX_BYTES) as arriving:
        task = asyncio.create_task(ear.take(arriving), name="ear")
        try:
            yield ear
        finally:
            task.cancel()
            await asyncio.wait({task})
