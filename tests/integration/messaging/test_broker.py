"""The connection to a real RabbitMQ: outages are noticed, said at once, and overcome."""

import asyncio
import time
from typing import Any

import aio_pika
import pytest

from sev_agent.messaging import topology
from sev_agent.messaging.broker import Broker, BrokerUnavailable, Delivery, Unroutable
from sev_agent.messaging.client import MessagingTimeout, RpcClient
from tests.integration.messaging.conftest import MAX_BYTES, Connect, Run
from tests.proxy import Proxy
from tests.rabbitmq import RabbitNode

NOWHERE = Delivery(exchange=topology.EXCHANGE, routing_key="nowhere")
PUBLISH_TIMEOUT = 1
DROPPED = Delivery(exchange=topology.EXCHANGE, routing_key="nowhere", mandatory=False)


def through(proxy: Proxy) -> str:
    return f"amqp://sev-agent:tests@127.0.0.1:{proxy.port}/"


@pytest.fixture
def states() -> "asyncio.Queue[bool]":
    return asyncio.Queue()


@pytest.fixture
async def proxied(proxy: Proxy, states: "asyncio.Queue[bool]", run: Run) -> Broker:
    broker = Broker(
        through(proxy),
        connection_name="tests",
        connect_timeout=1,
        reconnect_max=0.5,
        publish_timeout=PUBLISH_TIMEOUT,
        on_change=states.put_nowait,
    )
    run(broker)
    await broker.wait_up(10)
    assert await states.get()
    return broker


async def test_unroutable_is_an_error(broker: Broker) -> None:
    """A mandatory message without a queue fails, and the next one is unharmed."""
    with pytest.raises(Unroutable, match="nowhere"):
        await broker.publish(b"{}", NOWHERE)
    await broker.publish(b"{}", DROPPED)


async def test_cast_to_unknown_host_says_so(client: RpcClient, host: str) -> None:
    """A cast to a host that never was there names its queue, and what to check."""
    with pytest.raises(Unroutable) as caught:
        await client.cast("work", {}, queue=topology.work_queue_name(host))
    assert host in caught.value.message
    assert caught.value.remedy
    assert await client.consumer_count(topology.work_queue_name(host)) is None


async def test_publish_goes_on_after_a_channel_error(broker: Broker) -> None:
    """A publish that makes RabbitMQ close the channel fails alone."""
    with pytest.raises(BrokerUnavailable, match="no exchange"):
        await broker.publish(b"{}", Delivery(exchange="no-such-exchange", routing_key="x"))
    await broker.publish(b"{}", DROPPED)
    assert broker.is_up


async def test_cut_connection_comes_back(proxied: Broker, proxy: Proxy, states: "asyncio.Queue[bool]") -> None:
    """After a cut the broker is down, then up again, and each is told once."""
    for _ in range(3):
        proxy.cut()
        async with asyncio.timeout(60):
            assert [await states.get(), await states.get()] == [False, True]
        await proxied.publish(b"{}", DROPPED)


async def test_publish_fails_at_once_during_an_outage(
    proxied: Broker, proxy: Proxy, states: "asyncio.Queue[bool]"
) -> None:
    """While RabbitMQ is away a publish fails without waiting, and works after its return."""
    proxy.refuse()
    assert not await states.get()
    started = time.monotonic()
    with pytest.raises(BrokerUnavailable):
        await proxied.publish(b"{}", DROPPED)
    assert time.monotonic() - started < PUBLISH_TIMEOUT
    proxy.accept()
    async with asyncio.timeout(60):
        assert await states.get()
    await proxied.publish(b"{}", DROPPED)


async def test_publish_cut_in_the_middle_is_unavailable(proxied: Broker, proxy: Proxy) -> None:
    """A publish that waits for its confirmation when the connection goes fails; its task is not cancelled."""
    proxy.freeze()
    publishing = asyncio.create_task(proxied.publish(b"{}", DROPPED))
    await asyncio.sleep(0.1)
    proxy.cut()
    with pytest.raises(BrokerUnavailable):
        await publishing
    proxy.thaw()


async def test_hanging_broker_does_not_hold_a_publish(proxied: Broker, proxy: Proxy) -> None:
    """Without a confirmation a publish fails after its time limit."""
    proxy.freeze()
    started = time.monotonic()
    with pytest.raises(BrokerUnavailable):
        await proxied.publish(b"{}", DROPPED)
    assert 0.5 < time.monotonic() - started < 3
    proxy.thaw()


async def test_call_is_told_of_a_lost_connection(proxied: Broker, proxy: Proxy, node: RabbitNode, run: Run) -> None:
    """Who waits for a reply when the connection goes is told at once, and the next call works."""
    client = RpcClient(proxied, max_message_bytes=MAX_BYTES)
    run(client)
    queue = "held"
    channel = await (await proxied.link()).channel()
    await (await channel.declare_queue(queue)).bind(topology.EXCHANGE, routing_key=queue)
    call = asyncio.create_task(client.call("work", {}, queue=queue, timeout=120))
    await asyncio.sleep(0.3)
    proxy.cut()
    with pytest.raises(BrokerUnavailable, match="while waiting"):
        await asyncio.wait_for(call, 60)
    with pytest.raises(MessagingTimeout, match="nobody consumes it"):
        await client.call("work", {}, queue=queue, timeout=3)


async def test_wrong_password_is_named(node: RabbitNode, run: Run) -> None:
    """A refused login says which setting to correct, and not what the password is."""
    broker = Broker(
        node.url.replace("tests", "s3cr3t"),
        connection_name="tests",
        connect_timeout=5,
        reconnect_max=0.5,
        publish_timeout=5,
    )
    run(broker)
    with pytest.raises(BrokerUnavailable) as caught:
        await broker.wait_up(2)
    assert "messaging.url" in str(caught.value.remedy)
    assert "s3cr3t" not in str(caught.value)


async def test_absent_broker_is_waited_for(proxy: Proxy, run: Run) -> None:
    """A RabbitMQ that is away at the start is found as soon as it is there."""
    proxy.refuse()
    broker = Broker(through(proxy), connection_name="tests", connect_timeout=1, reconnect_max=0.5, publish_timeout=1)
    run(broker)
    with pytest.raises(BrokerUnavailable, match="no connection within"):
        await broker.wait_up(0.5)
    proxy.accept()
    await broker.wait_up(10)


async def test_failed_connection_is_closed(proxy: Proxy, run: Run) -> None:
    """A connection that was never made is marked closed: else it starts a task whenever it is collected."""
    made: list[aio_pika.Connection] = []

    class Watched(aio_pika.Connection):
        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **named)
            made.append(self)

    proxy.refuse()
    broker = Broker(through(proxy), connection_name="tests", connect_timeout=1, reconnect_max=0.5, publish_timeout=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(aio_pika, "Connection", Watched)
        run(broker)
        with pytest.raises(BrokerUnavailable):
            await broker.wait_up(1)
    tried, *_ = made
    assert tried.is_closed


async def test_connection_has_a_name(broker: Broker, node: RabbitNode) -> None:
    """An operator who lists the broker's connections sees whose they are."""
    listed = await asyncio.to_thread(node.ctl, "list_connections", "client_properties")
    assert '"connection_name","tests"' in listed


async def test_restart_of_the_node_is_survived(connect: Connect, node: RabbitNode) -> None:
    """After RabbitMQ's own stop and start the connection is there again."""
    broker = await connect(node.url)
    await asyncio.to_thread(node.ctl, "stop_app")
    with pytest.raises(BrokerUnavailable):
        await broker.publish(b"{}", DROPPED)
    await asyncio.to_thread(node.ctl, "start_app")
    await broker.wait_up(20)
    await broker.publish(b"{}", DROPPED)
