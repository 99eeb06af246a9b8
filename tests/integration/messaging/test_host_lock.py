"""Two daemons configured by mistake for one host name, on a real RabbitMQ."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeAlias

import pytest

from sev_agent.errors import HostTaken
from sev_agent.messaging.broker import Broker, BrokerUnavailable
from sev_agent.messaging.host_lock import HostLock, lock_name
from tests.integration.messaging.conftest import Run
from tests.proxy import Proxy
from tests.rabbitmq import RabbitNode

Daemon: TypeAlias = Callable[..., "tuple[Broker, asyncio.Task[None]]"]


@pytest.fixture
def daemon(host: str) -> Daemon:
    """Starts the connection of a daemon for ``host``; whoever asks for it ends its task."""

    def started(url: str, *, at_start: float = 0.5, after_loss: float = 5) -> tuple[Broker, "asyncio.Task[None]"]:
        broker = Broker(
            url,
            connection_name="tests",
            connect_timeout=5,
            reconnect_max=0.2,
            publish_timeout=5,
            claim=HostLock(host, at_start=at_start, after_loss=after_loss).take,
        )
        return broker, asyncio.create_task(broker.run())

    return started


async def _ended(task: "asyncio.Task[None]") -> None:
    task.cancel()
    await asyncio.wait({task}, timeout=10)
    assert task.cancelled()


async def test_second_is_refused(node: RabbitNode, daemon: Daemon, host: str) -> None:
    """The second daemon never gets a link, ends with the reason, and harms the first one in nothing."""
    first, task = daemon(node.url)
    link = await first.wait_up(10)
    second, refused = daemon(node.url)
    with pytest.raises(HostTaken, match=host) as error:
        await asyncio.wait_for(refused, 10)
    assert lock_name(host) in str(error.value.remedy)
    assert not second.is_up
    assert first.is_up
    assert not link.lost.is_set()
    await _ended(task)


async def test_next_after_the_first(node: RabbitNode, daemon: Daemon) -> None:
    """Once the first daemon has ended, another one may start."""
    first, task = daemon(node.url)
    await first.wait_up(10)
    await _ended(task)
    second, task = daemon(node.url)
    await second.wait_up(10)
    await _ended(task)


async def test_start_while_the_dying_one_goes(node: RabbitNode, daemon: Daemon) -> None:
    """A start within the first moments after the predecessor's end waits for its name and gets it."""
    first, dying = daemon(node.url)
    await first.wait_up(10)
    second, task = daemon(node.url, at_start=10)
    while second.fault is None or second.fault.code != "host.busy":
        await asyncio.sleep(0.01)
    assert not second.is_up
    await _ended(dying)
    await second.wait_up(10)
    await _ended(task)


async def test_own_half_dead_connection(node: RabbitNode, daemon: Daemon, proxy: Proxy) -> None:
    """After a loss that the broker has not seen yet, the daemon waits without a link, and gets its name back."""
    own, task = daemon(node.url.replace(str(node.port), str(proxy.port)), at_start=0.01, after_loss=30)
    await own.wait_up(10)
    proxy.strand()
    while own.fault is None or own.fault.code != "host.busy":
        await asyncio.sleep(0.01)
    assert not own.is_up
    with pytest.raises(BrokerUnavailable, match="another connection"):
        await own.wait_up(1)
    proxy.end()
    await own.wait_up(10)
    await _ended(task)


async def test_name_lost_for_good(node: RabbitNode, daemon: Daemon, proxy: Proxy) -> None:
    """A daemon whose name was taken while it was cut off ends in a bounded time, and says why."""
    first, task = daemon(node.url.replace(str(node.port), str(proxy.port)), after_loss=0.5)
    await first.wait_up(10)
    proxy.refuse()
    second, other = daemon(node.url, at_start=10)
    await second.wait_up(10)
    proxy.accept()
    with pytest.raises(HostTaken):
        await asyncio.wait_for(task, 10)
    await _ended(other)
