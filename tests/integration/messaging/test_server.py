"""What becomes of a request on its way through a real RabbitMQ."""

import asyncio
import json
from typing import Any

import pytest
from aio_pika.abc import AbstractIncomingMessage, AbstractQueue
from pydantic import JsonValue

from sev_agent import schema
from sev_agent.errors import Conflict, SevAgentError
from sev_agent.messaging import envelope, topology
from sev_agent.messaging.broker import Broker, Delivery
from sev_agent.messaging.client import RemoteError, RpcClient
from sev_agent.messaging.envelope import ReplyAddress, Request, RequestContext
from sev_agent.messaging.server import Method, Outcome, RpcServer
from sev_agent.messaging.topology import QueueSpec
from sev_agent.messaging.wire_json import Arguments
from tests.integration.messaging.conftest import MAX_BYTES, Connect, Run
from tests.proxy import Proxy

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
        async with asyncio.timeout(10):
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


async def dead_letter_of(broker: Broker, queue: str) -> AbstractIncomingMessage:
    """The message that came to the dead-letter queue from ``queue``; others are put back."""
    dead = await declared(broker, topology.DEAD_LETTER_QUEUE)
    async with asyncio.timeout(15):
        async with dead.iterator() as letters:
            async for letter in letters:
                deaths: Any = letter.headers.get("x-death", [{}])
                if queue in (letter.headers.get("x-original-queue"), deaths[0].get("queue")):
                    await letter.ack()
                    return letter
    raise AssertionError


def packed(message: dict[str, Any]) -> bytes:
    return json.dumps({"oslo.version": "2.0", "oslo.message": json.dumps(message)}).encode()


@pytest.mark.parametrize(
    ("body", "code", "field", "method"),
    [
        (b"\xff\x00", "message.malformed", "body", "unknown"),
        (b"hello", "message.malformed", "body", "unknown"),
        (b'{"method": "work"}', "message.malformed", "oslo.version", "unknown"),
        (packed({"args": {}}), "message.malformed", "method", "unknown"),
        (packed({"method": "work", "args": []}), "message.malformed", "args", "unknown"),
        (packed({"method": "explode", "args": GOOD}), "message.unknown_method", "method", "explode"),
        (packed({"method": "work", "args": GOOD, "version": "2.0"}), "message.unsupported_version", "version", "work"),
        (packed({"method": "work", "args": GOOD, "namespace": "x"}), "message.unsupported_version", "version", "work"),
        (packed({"method": "work", "args": {"instance_uuid": 7}}), "request.invalid", "instance_uuid", "work"),
        (packed({"method": "refuse", "args": GOOD}), "conflict", "instance.uuid", "refuse"),
        (b" " * (MAX_BYTES + 1), "message.malformed", "body", "unknown"),
    ],
    ids=lambda value: str(value)[:30] if isinstance(value, str) else "",
)
async def test_refused_cast_is_dead_lettered_with_reason(
    server: RpcServer, broker: Broker, queue: QueueSpec, on_host: Host, body: bytes, code: str, field: str, method: str
) -> None:
    """A cast that cannot be done ends in the dead-letter queue, whole, with code, field and reason; all are told."""
    await broker.publish(body, Delivery(exchange=topology.EXCHANGE, routing_key=queue.name))
    letter = await dead_letter_of(broker, queue.name)
    assert letter.body == body
    assert (letter.headers["x-sev-agent-code"], letter.headers["x-sev-agent-field"]) == (code, field)
    assert letter.headers["x-sev-agent-reason"]
    assert (await soon(on_host.rejected))[::2] == (method, code)
    assert (await soon(on_host.outcomes))[1] in {Outcome.INVALID, Outcome.REJECTED}
    assert (await declared(broker, queue.name)).declaration_result.message_count == 0


async def test_refused_call_gets_field_code_and_remedy(
    server: RpcServer, client: RpcClient, on_host: Host, queue: QueueSpec
) -> None:
    """A refusal reaches our client with everything that it said, and the host is told of it as of a cast's."""
    with pytest.raises(RemoteError) as caught:
        await client.call("refuse", GOOD, queue=queue.name, timeout=10)
    error = caught.value
    assert (error.code, error.field, error.remedy, error.retryable, error.kind) == (
        "conflict",
        "instance.uuid",
        "choose another",
        False,
        "Conflict",
    )
    assert RemoteError.code == "remote"
    assert (await soon(on_host.rejected))[::2] == ("refuse", "conflict")


@pytest.mark.parametrize(
    ("method", "arguments", "code", "field"),
    [
        ("explode", GOOD, "message.unknown_method", "method"),
        ("work", {}, "request.invalid", "instance_uuid"),
        ("work", {**GOOD, "force": True}, "request.invalid", "force"),
    ],
)
async def test_call_that_cannot_be_understood_gets_error_reply(
    server: RpcServer,
    client: RpcClient,
    queue: QueueSpec,
    method: str,
    arguments: dict[str, Any],
    code: str,
    field: str,
) -> None:
    """An unknown method, a missing and an unknown argument: each is answered by an error that names the field."""
    with pytest.raises(RemoteError) as caught:
        await client.call(method, arguments, queue=queue.name, timeout=10)
    assert (caught.value.code, caught.value.field) == (code, field)


async def test_fault_fails_a_call(server: RpcServer, client: RpcClient, on_host: Host, queue: QueueSpec) -> None:
    """An unexpected exception answers the call at once, without its text."""
    with pytest.raises(RemoteError) as caught:
        await client.call("crash", GOOD, queue=queue.name, timeout=10)
    assert (caught.value.code, caught.value.kind) == ("internal", "HandlerFault")
    assert await soon(on_host.outcomes) == ("crash", Outcome.FAILED)


async def test_fault_lets_a_cast_come_again_until_the_limit(
    server: RpcServer, client: RpcClient, broker: Broker, on_host: Host, queue: QueueSpec
) -> None:
    """A cast whose handler breaks is delivered again up to the limit, then dead-lettered by the broker."""
    await client.cast("crash", GOOD, queue=queue.name)
    letter = await dead_letter_of(broker, queue.name)
    deaths: Any = letter.headers["x-death"]
    assert deaths[0]["reason"] == "delivery_limit"
    assert on_host.started.qsize() == 3


async def test_slow_handler_is_cut_off(
    broker: Broker, client: RpcClient, on_host: Host, queue: QueueSpec, run: Run
) -> None:
    """A handler that exceeds its time fails the call."""
    run(on_host.serve(broker, queue, handler_timeout=0.1))
    await on_host.consumed()
    with pytest.raises(RemoteError, match="work took longer than") as caught:
        await client.call("work", GOOD, queue=queue.name, timeout=10)
    assert caught.value.code == "timeout"


async def test_slow_method(broker: Broker, client: RpcClient, on_host: Host, queue: QueueSpec, run: Run) -> None:
    """A method that may take longer than the others is given its own time."""
    slow = Method(name="work", arguments=schema.InstanceArguments, handler=on_host.work, timeout=10)
    run(on_host.serve(broker, queue, methods=[slow], handler_timeout=0.1))
    await on_host.consumed()
    asyncio.get_running_loop().call_later(0.5, on_host.release.set)
    assert await client.call("work", GOOD, queue=queue.name, timeout=10) == {"did": UUID}


async def test_concurrency_is_bounded(server: RpcServer, client: RpcClient, on_host: Host, queue: QueueSpec) -> None:
    """No more requests are in hand than allowed, and all are done in the end."""
    for _ in range(10):
        await client.cast("work", GOOD, queue=queue.name)
    for _ in range(4):
        await soon(on_host.started)
    on_host.release.set()
    for _ in range(10):
        await soon(on_host.finished)
    assert on_host.most_running == 4


async def test_reply_to_a_caller_that_left_is_dropped(
    server: RpcServer, broker: Broker, client: RpcClient, on_host: Host, queue: QueueSpec
) -> None:
    """A reply queue that is gone costs nothing: the request counts as done, and the next one is served."""
    on_host.release.set()
    request = Request(
        method="work",
        arguments={"instance_uuid": UUID},
        context=RequestContext(),
        reply_to=ReplyAddress(queue="reply_gone", msg_id="1"),
    )
    await broker.publish(envelope.encode_request(request), Delivery(exchange="sev", routing_key=queue.name))
    assert await soon(on_host.outcomes) == ("work", Outcome.OK)
    assert await client.call("work", GOOD, queue=queue.name, timeout=10) == {"did": UUID}


async def test_pause_removes_the_consumer_and_resume_brings_it_back(
    server: RpcServer, client: RpcClient, on_host: Host, queue: QueueSpec
) -> None:
    """While paused the broker sees no consumer and keeps the requests; afterwards they are done."""
    on_host.release.set()
    assert await client.consumer_count(queue.name) == 1
    await server.pause()
    assert await client.consumer_count(queue.name) == 0
    await client.cast("work", GOOD, queue=queue.name)
    assert on_host.started.empty()
    await server.resume()
    await soon(on_host.finished)
    assert await client.consumer_count(queue.name) == 1


async def test_pause_leaves_what_is_in_hand_to_finish(
    server: RpcServer, broker: Broker, client: RpcClient, on_host: Host, queue: QueueSpec
) -> None:
    """A request that runs when the pause comes is finished and acked, not done twice."""
    await client.cast("work", GOOD, queue=queue.name)
    await soon(on_host.started)
    await server.pause()
    on_host.release.set()
    await soon(on_host.finished)
    await server.resume()
    await on_host.consumed()
    await client.call("work", GOOD, queue=queue.name, timeout=10)
    assert on_host.started.qsize() == 1


async def test_stop_finishes_what_is_in_hand(
    broker: Broker, client: RpcClient, on_host: Host, queue: QueueSpec, run: Run
) -> None:
    """A stop takes no new request, but lets the running one end, be answered and acked."""
    serving = on_host.serve(broker, queue)
    task = run(serving)
    await on_host.consumed()
    call = asyncio.create_task(client.call("work", GOOD, queue=queue.name, timeout=10))
    await soon(on_host.started)
    task.cancel()
    await asyncio.sleep(0.2)
    assert not on_host.is_consumed.is_set()
    assert not task.done()
    on_host.release.set()
    assert await call == {"did": UUID}
    await asyncio.wait({task}, timeout=5)
    assert task.cancelled()
    assert (await declared(broker, queue.name)).declaration_result.message_count == 0


async def test_stop_gives_up_after_its_time(
    broker: Broker, client: RpcClient, on_host: Host, queue: QueueSpec, run: Run
) -> None:
    """A request that does not end within the stop's time is abandoned, and done by the next server."""
    serving = on_host.serve(broker, queue, stop_timeout=0.2)
    task = run(serving)
    await on_host.consumed()
    await client.cast("work", GOOD, queue=queue.name)
    await soon(on_host.started)
    task.cancel()
    await asyncio.wait({task}, timeout=5)
    assert task.cancelled()
    assert on_host.running == 0
    on_host.release.set()
    run(on_host.serve(broker, queue))
    await soon(on_host.finished)


async def test_request_survives_its_channel_and_comes_again(
    proxy: Proxy, connect: Connect, client: RpcClient, on_host: Host, queue: QueueSpec, run: Run
) -> None:
    """A handler goes on when its connection is cut; as its ack is lost, the request is delivered again."""
    serving = on_host.serve(await connect(f"amqp://sev-agent:tests@127.0.0.1:{proxy.port}/"), queue)
    run(serving)
    await on_host.consumed()
    context = RequestContext(request_id="req-once")
    await client.cast("work", GOOD, queue=queue.name, context=context)
    assert await soon(on_host.started) == context
    proxy.cut()
    assert await soon(on_host.started) == context
    assert on_host.running == 2
    on_host.release.set()
    assert [await soon(on_host.finished), await soon(on_host.finished)] == [context, context]
    await serving.pause()
    assert await client.consumer_count(queue.name) == 0


async def test_told_when_requests_can_come(
    broker: Broker, client: RpcClient, on_host: Host, queue: QueueSpec, run: Run
) -> None:
    """Whoever sends to a queue that never was before, once its server says that it is consumed, is heard."""
    on_host.release.set()
    run(on_host.serve(broker, queue))
    await on_host.consumed()
    await client.cast("work", GOOD, queue=queue.name)
    await soon(on_host.finished)


async def test_deleted_queue_is_made_again(
    server: RpcServer, broker: Broker, client: RpcClient, on_host: Host, queue: QueueSpec
) -> None:
    """A queue that an operator deletes is declared and consumed again."""
    on_host.release.set()
    await (await declared(broker, queue.name)).delete(if_unused=False, if_empty=False)
    async with asyncio.timeout(10):
        while not await client.consumer_count(queue.name):  # noqa: ASYNC110 - the broker tells only when asked
            await asyncio.sleep(0.01)
    assert await client.call("work", GOOD, queue=queue.name, timeout=10) == {"did": UUID}


async def test_queue_with_other_properties_is_told_with_remedy(
    server: RpcServer, broker: Broker, on_host: Host, host: str, run: Run
) -> None:
    """A changed delivery limit does not crash the server: it says what is wrong and what to do."""
    told = asyncio.Event()
    other = on_host.serve(broker, topology.work_queue(host, delivery_limit=7), on_change=lambda _: told.set())
    run(other)
    async with asyncio.timeout(10):
        await told.wait()
    assert other.fault is not None
    assert other.fault.code == "message.topology"
    assert "x-delivery-limit" in other.fault.message
    assert "delete_queue" in str(other.fault.remedy)
