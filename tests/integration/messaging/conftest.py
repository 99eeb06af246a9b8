"""The parts under test, connected to a real RabbitMQ."""

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, TypeAlias
from uuid import uuid4

import pytest

from sev_agent.messaging.broker import Broker
from sev_agent.messaging.client import RpcClient
from tests.proxy import Proxy
from tests.rabbitmq import RabbitNode

MAX_BYTES = 100_000

Connect: TypeAlias = Callable[[str], Awaitable[Broker]]
Run: TypeAlias = Callable[[Any], "asyncio.Task[None]"]


@pytest.fixture
def host() -> str:
    """A host name that no other test uses, so that no test sees another's queues."""
    return f"host-{uuid4().hex[:8]}.example"


@pytest.fixture
async def run() -> AsyncIterator[Run]:
    """Runs a component's ``run()`` as a task until the test ends; the last started is stopped first."""
    tasks: list[asyncio.Task[None]] = []

    def start(component: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.create_task(component.run(), name=type(component).__name__)
        tasks.append(task)
        return task

    yield start
    for task in reversed(tasks):
        task.cancel()
        await asyncio.wait({task}, timeout=15)
        assert task.done(), f"{task.get_name()} does not stop"
        if not task.cancelled():
            task.result()


@pytest.fixture
def connect(run: Run) -> Connect:
    """Gives a broker that is up, for a URL."""

    async def connected(url: str) -> Broker:
        broker = Broker(url, connection_name="tests", connect_timeout=5, reconnect_max=0.5, publish_timeout=5)
        run(broker)
        await broker.wait_up(10)
        return broker

    return connected


@pytest.fixture
async def broker(node: RabbitNode, connect: Connect) -> Broker:
    return await connect(node.url)


@pytest.fixture
async def client(broker: Broker, run: Run) -> RpcClient:
    asking = RpcClient(broker, max_message_bytes=MAX_BYTES)
    run(asking)
    return asking


@pytest.fixture
async def proxy(node: RabbitNode) -> AsyncIterator[Proxy]:
    async with Proxy(node.port) as running:
        yield running


class Oslo:
    """The other side: oslo.messaging in a process of its own."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def event(self) -> Any:
        assert self._process.stdout is not None
        line = await asyncio.wait_for(self._process.stdout.readline(), 30)
        assert line, "the oslo.messaging process ended"
        return json.loads(line)


Peer: TypeAlias = Callable[..., "contextlib.AbstractAsyncContextManager[Oslo]"]


@pytest.fixture
def oslo(node: RabbitNode) -> Peer:
    """Starts ``oslo_peer.py`` in a mode; ends it with the context."""

    @contextlib.asynccontextmanager
    async def started(mode: str, *arguments: str) -> AsyncIterator[Oslo]:
        url = node.url.replace("amqp://", "rabbit://")
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            Path(__file__).with_name("oslo_peer.py"),
            url,
            mode,
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        try:
            yield Oslo(process)
        finally:
            try:
                async with asyncio.timeout(20):
                    await process.communicate(b"")
            except TimeoutError:
                process.kill()
                await process.communicate()

    return started
