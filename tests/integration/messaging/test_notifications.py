"""Notifications between our own ends."""

import asyncio

import pytest

from sev_agent.messaging import envelope, topology
from sev_agent.messaging.broker import Broker, BrokerUnavailable, Delivery
from sev_agent.messaging.envelope import Priority, RequestContext
from sev_agent.messaging.notifications import Notifier, subscribe
from tests.integration.messaging.conftest import MAX_BYTES, Connect
from tests.proxy import Proxy


@pytest.fixture
def notifier(broker: Broker) -> Notifier:
    return Notifier(broker, publisher_id="sev_agent.host-1")


async def test_subscriber_hears_from_entry_on(broker: Broker, notifier: Notifier) -> None:
    """What is sent after entry arrives whole and in order, both priorities."""
    first = notifier.make("sev.instance.create.start", {"n": 1}, context=RequestContext(request_id="req-1"))
    second = notifier.make("sev.instance.create.error", {"n": 2}, priority=Priority.ERROR)
    async with asyncio.timeout(60), subscribe(broker, max_message_bytes=MAX_BYTES) as heard:
        await notifier.send(first)
        await notifier.send(second)
        assert [await anext(heard), await anext(heard)] == [first, second]


async def test_subscriber_to_errors_hears_errors_only(broker: Broker, notifier: Notifier) -> None:
    """A priority that was not asked for does not arrive."""
    async with (
        asyncio.timeout(60),
        subscribe(broker, priorities=[Priority.ERROR], max_message_bytes=MAX_BYTES) as heard,
    ):
        await notifier.notify("sev.host.fine", {})
        await notifier.notify("sev.host.broken", {}, priority=Priority.ERROR)
        assert (await anext(heard)).event_type == "sev.host.broken"


async def test_garbage_does_not_end_a_subscription(broker: Broker, notifier: Notifier) -> None:
    """A malformed notification is passed over."""
    async with asyncio.timeout(60), subscribe(broker, max_message_bytes=MAX_BYTES) as heard:
        key = topology.notification_key(Priority.INFO)
        await broker.publish(b"garbage", Delivery(exchange=topology.EXCHANGE, routing_key=key))
        await notifier.notify("sev.host.fine", {})
        assert (await anext(heard)).event_type == "sev.host.fine"


async def test_nobody_listening_is_no_error(notifier: Notifier) -> None:
    """Without a listener, telling is no error."""
    await notifier.notify("sev.host.fine", {})


async def test_lost_connection_ends_a_subscription(proxy: Proxy, connect: Connect) -> None:
    """A subscriber is told of a gap instead of waiting for what may never come."""
    broker = await connect(f"amqp://sev-agent:tests@127.0.0.1:{proxy.port}/")
    async with asyncio.timeout(60), subscribe(broker, max_message_bytes=MAX_BYTES) as heard:
        proxy.cut()
        with pytest.raises(BrokerUnavailable):
            await anext(heard)


async def test_api_queue_hears_both_priorities(broker: Broker, notifier: Notifier) -> None:
    """The API's own queue keeps every notification from its declaration on, with nobody listening, in order."""
    channel = await (await broker.link()).channel()
    # Other tests on this broker have one, too, and what they told is in it, or in the hands of who listened last.
    await (await topology.api_queue().declare(channel, timeout=5)).delete(if_unused=False, if_empty=False)
    queue = await topology.api_queue().declare(channel, timeout=5)
    first = notifier.make("sev.instance.create.start", {"n": 1})
    second = notifier.make("sev.instance.create.error", {"n": 2}, priority=Priority.ERROR)
    await notifier.send(first)
    await notifier.send(second)

    kept = [await queue.get(no_ack=True, timeout=10) for _ in range(2)]

    heard = [envelope.decode_notification(envelope.unpack(letter.body, max_bytes=MAX_BYTES)) for letter in kept]
    assert heard == [first, second]
    await queue.delete(if_unused=False, if_empty=False)
    await channel.close()
