"""What becomes of a request on its way through a real RabbitMQ."""

import asyncio
import json
from typing import Any

import pytest
from aio_pika.abc import AbstractIncomingMessage

from sev_agent import schema
from sev_agent.messaging import envelope, topology
from sev_agent.messaging.answering import Method, Outcome
from sev_agent.messaging.broker import Broker, Delivery
from sev_agent.messaging.client import RemoteError, RpcClient
from sev_agent.messaging.envelope import ReplyAddress, Request, RequestContext
from sev_agent.messaging.server import RpcServer
from sev_agent.messaging.topology import QueueSpec
from tests.integration.messaging.conftest import GOOD, MAX_BYTES, UUID, Host, Run, declared, soon


async def dead_letter_of(broker: Broker, queue: str) -> AbstractIncomingMessage:
    """The message that came to the dead-letter queue from ``queue``; others are put back."""
    dead = await declared(broker, topology.DEAD_LETTER_QUEUE)
    async with asyncio.timeout(60):
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
