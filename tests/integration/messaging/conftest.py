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
from aio_pika.abc import AbstractQueue
from pydantic import JsonValue

from sev_agent import schema
from sev_agent.errors import Conflict, SevAgentError
from sev_agent.messaging import topology
from sev_agent.messaging.answering import Method, Outcome
from sev_agent.messaging.broker import Broker
from sev_agent.messaging.client import RpcClient
from sev_agent.messaging.envelope import RequestContext
from sev_agent.messaging.server import RpcServer
from sev_agent.messaging.topology import QueueSpec
from sev_agent.messaging.wire_json import Arguments
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


UUID = "0f1e2d3c-0000-4000-8000-00000000000a"
GOOD = {"instance_uuid": UUID}


class Host:
    """Handlers that wait to be released, and a record of all that the server told."""

    def __init__(self) -> None:
        self.started: asyncio.Queue[RequestContext] = asyncio.Queue()
        self.release = asyncio.Event()
        self.finished: asyncio.Queue[RequestContext] = asyncio.Queue()
        self.outcomes: asyncio.Queue[tuple[str, Outcome]] = asyncio.Queue()
        self.rejected: asyncio.Queue[tuple[str, Arguments | None, str]] = asyncio.Queue()
        self.running = 0
        self.most_running = 0
        self.is_consumed = asyncio.Event()

    def on_change(self, is_consumed: bool) -> None:  # noqa: FBT001 - the callback's one argument
        (self.is_consumed.set if is_consumed else self.is_consumed.clear)()

    async def consumed(self) -> None:
        """Return once the broker has the consumer."""
        async with asyncio.timeout(60):
            await self.is_consumed.wait()

    async def work(self, context: RequestContext, arguments: schema.InstanceArguments) -> JsonValue:
        self.running += 1
        self.most_running = max(self.running, self.most_running)
        self.started.put_nowait(context)
        try:
            await self.release.wait()
        finally:
            self.running -= 1
        self.finished.put_nowait(context)
        return {"did": str(arguments.instance_uuid)}

    async def refuse(self, context: RequestContext, arguments: schema.InstanceArguments) -> JsonValue:
        raise Conflict("it exists already", field="instance.uuid", remedy="choose another")

    async def crash(self, context: RequestContext, arguments: schema.InstanceArguments) -> JsonValue:
        self.started.put_nowait(context)
        raise ZeroDivisionError

    async def on_rejected(
        self, context: RequestContext, method: str, arguments: Arguments | None, error: SevAgentError
    ) -> None:
        self.rejected.put_nowait((method, arguments, error.code))

    def serve(self, broker: Broker, queue: QueueSpec, **options: Any) -> RpcServer:
        defaults: dict[str, Any] = {
            "methods": [
                Method(name=name, arguments=schema.InstanceArguments, handler=getattr(self, name))
                for name in ("work", "refuse", "crash")
            ],
            "max_message_bytes": MAX_BYTES,
            "concurrency": 4,
            "handler_timeout": 30,
            "stop_timeout": 5,
            "on_change": self.on_change,
            "on_outcome": lambda method, outcome: self.outcomes.put_nowait((method, outcome)),
            "on_rejected": self.on_rejected,
        }
        return RpcServer(broker, queue=queue, **(defaults | options))


@pytest.fixture
def on_host() -> Host:
    return Host()


@pytest.fixture
def queue(host: str) -> QueueSpec:
    return topology.work_queue(host, delivery_limit=2)


@pytest.fixture
async def server(broker: Broker, queue: QueueSpec, on_host: Host, run: Run) -> RpcServer:
    serving = on_host.serve(broker, queue)
    run(serving)
    await on_host.consumed()
    return serving


async def soon(queue: "asyncio.Queue[Any]") -> Any:
    return await asyncio.wait_for(queue.get(), 10)


async def declared(broker: Broker, name: str) -> AbstractQueue:
    channel = await (await broker.link()).channel()
    return await channel.declare_queue(name, passive=True)
