"""The listening end of notifications where none may be missed: from a durable queue, acked when they are dealt with."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import structlog
from aio_pika.abc import AbstractIncomingMessage

from sev_agent.backoff import Backoff
from sev_agent.errors import SevAgentError
from sev_agent.messaging import envelope
from sev_agent.messaging.broker import Broker, BrokerUnavailable, Link, broker_errors
from sev_agent.messaging.envelope import Notification
from sev_agent.messaging.topology import QueueSpec
from sev_agent.messaging.wire_json import MalformedMessage
from sev_agent.uninterrupted import raise_if_cancelled

log = structlog.stdlib.get_logger(__name__)

_PREFETCH = 100
_RETRY_FIRST = 0.2
_RETRY_MAX = 5.0

Handle = Callable[[Notification], Awaitable[None]]
"""Returns when the notification is dealt with. Whatever it raises, the notification comes again."""


class NotificationConsumer:
    """Hands the notifications of ``queue`` to ``handle``, one after the other.

    One that cannot be dealt with now, for an outage elsewhere, is given back, and nothing more is taken for a while.
    One that cannot be understood, or that ``handle`` breaks on, is logged and dropped: it would come for ever.
    """

    def __init__(self, broker: Broker, *, queue: QueueSpec, handle: Handle, max_message_bytes: int) -> None:
        self._broker = broker
        self._queue = queue
        self._handle = handle
        self._max_message_bytes = max_message_bytes

    async def run(self) -> None:
        """Consume on every link until cancelled."""
        backoff = Backoff(_RETRY_FIRST, _RETRY_MAX)
        while True:
            raise_if_cancelled()
            link = await self._broker.link()
            try:
                if await self._consume(link):
                    backoff.reset()
            except SevAgentError as error:
                log.warning("notifications.consume.failed", queue=self._queue.name, error=str(error))
            await backoff.pause()

    async def _consume(self, link: Link) -> bool:
        """Until the channel is gone, or a notification must wait; whether any was dealt with."""
        arrived: asyncio.Queue[AbstractIncomingMessage | None] = asyncio.Queue()
        channel = await link.channel(prefetch=_PREFETCH)
        channel.close_callbacks.add(lambda *_: arrived.put_nowait(None))
        dealt = False
        try:
            with broker_errors(f"consume '{self._queue.name}'"):
                underlay = await channel.get_underlay_channel()
                underlay.on_consumer_cancel_callbacks.add(lambda _: arrived.put_nowait(None))
                queue = await self._queue.declare(channel, timeout=self._broker.timeout)
                await queue.consume(arrived.put, timeout=self._broker.timeout)
            log.info("notifications.consuming", queue=self._queue.name)
            while (incoming := await arrived.get()) is not None:
                raise_if_cancelled()
                await self._deal_with(incoming)
                dealt = True
        finally:
            # What was taken and not acked comes again.
            with contextlib.suppress(BrokerUnavailable), broker_errors("close the channel"):
                async with asyncio.timeout(self._broker.timeout):
                    await channel.close()
        return dealt

    async def _deal_with(self, incoming: AbstractIncomingMessage) -> None:
        try:
            message = envelope.unpack(incoming.body, max_bytes=self._max_message_bytes)
            await self._handle(envelope.decode_notification(message))
        except MalformedMessage as error:
            log.warning("notification.malformed", error=str(error))
        except SevAgentError:
            raise
        except Exception:
            log.exception("notification.dropped", queue=self._queue.name)
        with broker_errors("ack a notification"):
            await incoming.ack()
