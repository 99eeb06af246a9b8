"""Two daemons configured by mistake for one host name, on a real RabbitMQ."""

import asyncio
from collections.abc import Callable
from typing import TypeAlias

import pytest

from sev_agent.errors import HostTaken
from sev_agent.messaging.broker import Broker, BrokerUnavailable
from sev_agent.messaging.host_lock import HostLock, lock_name
from tests.proxy import Proxy
from tests.rabbitmq import RabbitNode


class Daemon:
    """The connection of one daemon. ``busy`` is set once it was told that its name is another connection's."""

    def __init__(self, url: str, host: str, *, at_start: float, after_loss: float) -> None:
        self.busy = asyncio.Event()
        self.broker = Broker(
            url,
            connection_name="tests",
            connect_timeout=5,
            reconnect_max=0.2,
            publish_timeout=5,
            claim=HostLock(host, at_start=at_start, after_loss=after_loss).take,
            on_change=self._on_change,
        )
        self.task = asyncio.create_task(self.broker.run())

    async def is_told_busy(self) -> None:
        async with asyncio.timeout(60):
            await self.busy.wait()
        assert not self.broker.is_up

    async def end(self) -> None:
        self.task.cancel()
        await asyncio.wait({self.task}, timeout=10)
        assert self.task.cancelled()

    def _on_change(self, is_up: bool) -> None:  # noqa: FBT001 - the callback's one argument
        fault = self.broker.fault
        if not is_up and fault is not None and fault.code == "host.busy":
            self.busy.set()


Start: TypeAlias = Callable[..., Daemon]


@pytest.fixture
def start(host: str) -> Start:
    def started(url: str, *, at_start: float = 0.5, after_loss: float = 5) -> Daemon:
        return Daemon(url, host, at_start=at_start, after_loss=after_loss)

    return started


def _through(proxy: Proxy, node: RabbitNode) -> str:
    return node.url.replace(str(node.port), str(proxy.port))


async def test_second_is_refused(node: RabbitNode, start: Start, host: str) -> None:
    """The second daemon never gets a link, ends with the reason, and harms the first one in nothing."""
    first = start(node.url)
    link = await first.broker.wait_up(60)
    second = start(node.url)
    with pytest.raises(HostTaken, match=host) as refused:
        await asyncio.wait_for(second.task, 60)
    assert lock_name(host) in str(refused.value.remedy)
    assert not second.broker.is_up
    assert first.broker.is_up
    assert not link.lost.is_set()
    await first.end()


async def test_next_after_the_first(node: RabbitNode, start: Start) -> None:
    """Once the first daemon has ended, another one may start."""
    first = start(node.url)
    await first.broker.wait_up(60)
    await first.end()
    second = start(node.url)
    await second.broker.wait_up(60)
    await second.end()


async def test_start_while_the_last_one_goes(node: RabbitNode, start: Start) -> None:
    """A start within the first moments of its predecessor's end waits for the name, and gets it."""
    first = start(node.url)
    await first.broker.wait_up(60)
    second = start(node.url, at_start=10)
    await second.is_told_busy()
    await first.end()
    await second.broker.wait_up(60)
    await second.end()


async def test_own_half_dead_connection(node: RabbitNode, start: Start, proxy: Proxy) -> None:
    """After a loss that the broker has not seen yet, the daemon waits without a link, and gets its name back."""
    daemon = start(_through(proxy, node), at_start=0.01, after_loss=30)
    await daemon.broker.wait_up(60)
    proxy.strand()
    await daemon.is_told_busy()
    with pytest.raises(BrokerUnavailable, match="another connection"):
        await daemon.broker.wait_up(1)
    proxy.end()
    await daemon.broker.wait_up(60)
    await daemon.end()


async def test_name_lost_for_good(node: RabbitNode, start: Start, proxy: Proxy) -> None:
    """A daemon whose name was taken while it was cut off ends within its patience, and says why."""
    first = start(_through(proxy, node), after_loss=0.5)
    await first.broker.wait_up(60)
    proxy.refuse()
    second = start(node.url, at_start=10)
    await second.broker.wait_up(60)
    proxy.accept()
    with pytest.raises(HostTaken):
        await asyncio.wait_for(first.task, 60)
    await second.end()
