"""Notifications: what happened, told to whoever listens, in oslo.messaging's format."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any

import structlog
from aio_pika.abc import AbstractIncomingMessage

from sev_agent.messaging import envelope, topology
from sev_agent.messaging.broker import Broker, BrokerUnavailable, Delivery, broker_errors
from sev_agent.messaging.envelope import Notification, Priority, RequestContext
from sev_agent.messaging.wire_json import MalformedMessage

log = structlog.stdlib.get_logger(__name__)

_MAX_PENDING = 10_000
"""Notifications that a subscriber may be behind before the oldest are dropped."""


class Notifier:
    """Publishes notifications of ``publisher_id`` (``sev_agent.<host>``)."""

    def __init__(self, broker: Broker, *, publisher_id: str) -> None:
        self._broker = broker
        self._publisher_id = publisher_id

    async def notify(
        self,
        event_type: str,
        payload: Mapping[str, Any],
        *,
        priority: Priority = Priority.INFO,
        context: RequestContext | None = None,
    ) -> None:
        """Make a notification and send it. Raises ``BrokerUnavailable``."""
        await self.send(self.make(event_type, payload, priority=priority, context=context))

    def make(
        self,
        event_type: str,
        payload: Mapping[str, Any],
        *,
        priority: Priority = Priority.INFO,
        context: RequestContext | None = None,
    ) -> Notification:
        """A notification with an identifier and a time of its own, not sent yet."""
        return Notification(
            event_type=event_type,
            payload=dict(payload),
            publisher_id=self._publisher_id,
            priority=priority,
            context=context or RequestContext(),
        )

    @property
    def can_send(self) -> bool:
        """Whether the broker is there now."""
        return self._broker.is_up

    async def publish(self, body: bytes, priority: Priority) -> None:
        """Publish what ``envelope.encode_notification`` made, as ``send`` does. Raises ``BrokerUnavailable``."""
        await self._broker.publish(
            body,
            Delivery(exchange=topology.EXCHANGE, routing_key=topology.notification_key(priority), mandatory=False),
        )

    async def send(self, notification: Notification) -> None:
        """Publish, and return when the broker has it; with no listener it is dropped. Raises ``BrokerUnavailable``."""
        await self.publish(envelope.encode_notification(notification), notification.priority)


@contextlib.asynccontextmanager
async def subscribe(
    broker: Broker, *, priorities: Iterable[Priority] = tuple(Priority), max_message_bytes: int
) -> AsyncIterator[AsyncIterator[Notification]]:
    """Listen on a queue of one's own, from the moment of entry, for as long as the context is open.

    Entry and iteration raise ``BrokerUnavailable``: after a loss of the connection there is a gap, so whoever listens
    must ask for the state anew.
    """
    link = await broker.wait_up(broker.timeout)
    channel = await link.channel()
    arrived: asyncio.Queue[AbstractIncomingMessage | None] = asyncio.Queue()
    channel.close_callbacks.add(lambda *_: arrived.put_nowait(None))
    try:
        with broker_errors("subscribe to notifications"):
            queue = await channel.declare_queue(
                exclusive=True, auto_delete=True, arguments={"x-max-length": _MAX_PENDING}, timeout=broker.timeout
            )
            for priority in priorities:
                key = topology.notification_key(priority)
                await queue.bind(topology.EXCHANGE, routing_key=key, timeout=broker.timeout)
            await channel.set_qos(prefetch_count=100, timeout=broker.timeout)
            await queue.consume(arrived.put, timeout=broker.timeout)
        yield _decoded(arrived, max_message_bytes)
    finally:
        with contextlib.suppress(BrokerUnavailable), broker_errors("close the channel"):
            async with asyncio.timeout(broker.timeout):
                await channel.close()


async def _decoded(
    arrived: "asyncio.Queue[AbstractIncomingMessage | None]", max_message_bytes: int
) -> AsyncIterator[Notification]:
    while (incoming := await arrived.get()) is not None:
        with broker_errors("take a notification"):
            await incoming.ack()
        try:
            notification = envelope.decode_notification(envelope.unpack(incoming.body, max_bytes=max_message_bytes))
        except MalformedMessage as error:
            log.warning("notification.malformed", error=str(error))
            continue
        yield notification
    raise BrokerUnavailable("the connection was lost while listening", remedy="listen again, and ask for the state")
