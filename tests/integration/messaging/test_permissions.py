"""The permissions at RabbitMQ that the documentation gives are enough."""

import asyncio
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from pydantic import JsonValue

from sev_agent import schema
from sev_agent.messaging import topology
from sev_agent.messaging.answering import Method
from sev_agent.messaging.broker import Broker, BrokerUnavailable
from sev_agent.messaging.client import RpcClient
from sev_agent.messaging.envelope import RequestContext
from sev_agent.messaging.host_lock import HostLock
from sev_agent.messaging.notifications import Notifier, subscribe
from sev_agent.messaging.server import RpcServer
from tests.integration.messaging.conftest import MAX_BYTES, Connect, Run
from tests.rabbitmq import RabbitNode

PAGE = Path(__file__).parents[3] / "docs" / "production.md"
UUID = "0f1e2d3c-0000-4000-8000-00000000000b"


@pytest.fixture(scope="module")
def url_of(node: RabbitNode) -> Callable[[str], str]:
    """The addresses of the page's users, made by the page's commands, on a virtual host of the test's own."""
    virtual_host = f"sev-{uuid4().hex[:8]}"
    for command in re.findall(r"^    rabbitmqctl (.+)$", PAGE.read_text(), re.MULTILINE):
        words = [virtual_host if word == "sev" else word for word in shlex.split(command)]
        node.ctl(*words)
    return lambda user: f"amqp://{user}:PASSWORD@127.0.0.1:{node.port}/{virtual_host}"


async def answer(context: RequestContext, arguments: schema.InstanceArguments) -> JsonValue:
    return {"did": str(arguments.instance_uuid)}


def serve(broker: Broker, queue: topology.QueueSpec, consumed: asyncio.Event) -> RpcServer:
    ignored: Any = lambda *_: None  # noqa: E731 - stands for three callbacks
    return RpcServer(
        broker,
        queue=queue,
        methods=[Method(name="answer", arguments=schema.InstanceArguments, handler=answer)],
        max_message_bytes=MAX_BYTES,
        concurrency=1,
        handler_timeout=30,
        stop_timeout=5,
        on_change=lambda is_consumed: consumed.set() if is_consumed else None,
        on_outcome=ignored,
    )


async def test_documented_permissions(url_of: Callable[[str], str], connect: Connect, run: Run, host: str) -> None:
    """A host's user serves its queues, locks its name and tells; the API's asks it and hears; no more is needed."""
    on_host, asking = await connect(url_of("sev-host")), await connect(url_of("sev-api"))
    await HostLock(host).take(await on_host.link())
    queues = [
        topology.work_queue(host, delivery_limit=2),
        topology.query_queue(host),
        topology.scheduler_queue(delivery_limit=2),
        topology.api_queue(),
    ]
    for queue in queues[:-1]:
        consumed = asyncio.Event()
        run(serve(on_host, queue, consumed))
        await asyncio.wait_for(consumed.wait(), 30)
    client = RpcClient(asking, max_message_bytes=MAX_BYTES)
    run(client)
    async with asyncio.timeout(60):
        for queue in queues[:-1]:
            reply = await client.call("answer", {"instance_uuid": UUID}, queue=queue.name, timeout=30)
            assert reply == {"did": UUID}
        await queues[-1].declare(await (await asking.link()).channel(), timeout=10)
        async with subscribe(asking, max_message_bytes=MAX_BYTES) as heard:
            await Notifier(on_host, publisher_id=f"sev_agent.{host}").notify("sev.host.drift", {"host": host})
            assert (await anext(heard)).payload == {"host": host}


async def test_who_may_not_ask_is_told_why(url_of: Callable[[str], str], connect: Connect, run: Run, host: str) -> None:
    """A command that was given a host's user says what the broker refused, and whom, not only that time passed."""
    client = RpcClient(await connect(url_of("sev-host")), max_message_bytes=MAX_BYTES)
    run(client)
    async with asyncio.timeout(60):
        said = ""
        while "refused for user 'sev-host'" not in said:
            with pytest.raises(BrokerUnavailable) as caught:
                await client.call("answer", {"instance_uuid": UUID}, queue=topology.work_queue_name(host), timeout=1)
            said = str(caught.value)
    assert "so answer was not sent" in said


async def test_hosts_hear_nobody_elses_answers(url_of: Callable[[str], str], connect: Connect) -> None:
    """The commands do limit: a host's user may not make a queue of another name."""
    on_host = await connect(url_of("sev-host"))
    with pytest.raises(BrokerUnavailable):
        async with subscribe(on_host, max_message_bytes=MAX_BYTES):
            pass
