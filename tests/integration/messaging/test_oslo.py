"""A stock oslo.messaging can call the agent and hear it, and be called by it."""

import asyncio
import json
from typing import Any

import pytest
from pydantic import JsonValue

from sev_agent import schema
from sev_agent.errors import Conflict
from sev_agent.messaging import topology
from sev_agent.messaging.answering import Method
from sev_agent.messaging.broker import Broker
from sev_agent.messaging.client import RemoteError, RpcClient
from sev_agent.messaging.envelope import Priority, RequestContext
from sev_agent.messaging.notifications import Notifier
from sev_agent.messaging.server import RpcServer
from tests.integration.messaging.conftest import MAX_BYTES, Peer, Run

UUID = "0f1e2d3c-0000-4000-8000-00000000000a"


class Handlers:
    def __init__(self) -> None:
        self.seen: asyncio.Queue[tuple[RequestContext, schema.InstanceArguments]] = asyncio.Queue()

    async def get_instance(self, context: RequestContext, arguments: schema.InstanceArguments) -> JsonValue:
        self.seen.put_nowait((context, arguments))
        return {"uuid": str(arguments.instance_uuid), "state": "running"}

    async def terminate_instance(self, context: RequestContext, arguments: schema.InstanceArguments) -> JsonValue:
        raise Conflict("another operation runs", field="instance_uuid", remedy="wait for it")


@pytest.fixture
def handlers() -> Handlers:
    return Handlers()


@pytest.fixture
async def server(broker: Broker, host: str, handlers: Handlers, run: Run) -> RpcServer:
    methods = [
        Method(name=name, arguments=schema.InstanceArguments, handler=getattr(handlers, name))
        for name in ("get_instance", "terminate_instance")
    ]
    consumed = asyncio.Event()
    serving = RpcServer(
        broker,
        queue=topology.work_queue(host, delivery_limit=3),
        methods=methods,
        max_message_bytes=MAX_BYTES,
        concurrency=10,
        handler_timeout=10,
        stop_timeout=5,
        on_change=lambda _: consumed.set(),
    )
    run(serving)
    async with asyncio.timeout(60):
        await consumed.wait()
    return serving


def asking(host: str, method: str, **arguments: Any) -> str:
    return json.dumps({"topic": "sev_agent", "server": host, "method": method, "arguments": arguments})


async def test_call_gets_result(server: RpcServer, handlers: Handlers, host: str, oslo: Peer) -> None:
    """An oslo call returns what the handler returned, and brings its context along."""
    async with oslo("call", asking(host, "get_instance", instance_uuid=UUID)) as peer:
        assert await peer.event() == {"result": {"uuid": UUID, "state": "running"}}
    context, _ = await handlers.seen.get()
    assert context == RequestContext(request_id="req-from-oslo", user_id="user-1", project_id="project-1")


async def test_call_gets_handlers_error(server: RpcServer, host: str, oslo: Peer) -> None:
    """An error of the handler reaches oslo as a remote error with field and remedy in its text."""
    async with oslo("call", asking(host, "terminate_instance", instance_uuid=UUID)) as peer:
        assert await peer.event() == {
            "error": "Conflict",
            "text": "instance_uuid: another operation runs (wait for it)",
        }


async def test_call_with_bad_argument_names_field(server: RpcServer, host: str, oslo: Peer) -> None:
    """A call whose arguments do not fit the schema gets an error reply that names the field."""
    async with oslo("call", asking(host, "get_instance", instance_uuid="nonsense")) as peer:
        event = await peer.event()
    assert event["error"] == "InvalidRequest"
    assert event["text"].startswith("instance_uuid: ")


async def test_cast_reaches_handler(server: RpcServer, handlers: Handlers, host: str, oslo: Peer) -> None:
    """An oslo cast is handled."""
    async with oslo("cast", asking(host, "get_instance", instance_uuid=UUID)) as peer:
        assert await peer.event() == {"result": None}
        _, arguments = await asyncio.wait_for(handlers.seen.get(), 10)
    assert str(arguments.instance_uuid) == UUID


async def test_listener_hears_notifications(broker: Broker, oslo: Peer) -> None:
    """An oslo notification listener receives both priorities, with context, publisher and payload."""
    notifier = Notifier(broker, publisher_id="sev_agent.host-1")
    context = RequestContext(request_id="req-1", project_id="project-1")
    async with oslo("listen") as peer:
        assert await peer.event() == {"ready": True}
        await notifier.notify("sev.instance.create.start", {"instance_uuid": UUID}, context=context)
        info = await peer.event()
        await notifier.notify("sev.instance.create.error", {"code": "x"}, priority=Priority.ERROR, context=context)
        error = await peer.event()
    assert (info["priority"], info["event_type"], info["publisher_id"], info["payload"]) == (
        "info",
        "sev.instance.create.start",
        "sev_agent.host-1",
        {"instance_uuid": UUID},
    )
    assert info["context"]["request_id"] == "req-1"
    assert (error["priority"], error["payload"]) == ("error", {"code": "x"})
    assert error["metadata"]["message_id"] != info["metadata"]["message_id"]


async def test_our_client_calls_oslo_server(client: RpcClient, host: str, oslo: Peer) -> None:
    """Our client gets results and errors from an oslo server, and casts to it."""
    queue = f"oslo_peer.{host}"
    async with oslo("serve", host) as peer:
        assert await peer.event() == {"ready": True}
        context = RequestContext(request_id="req-2", project_id="project-2")
        result = await client.call("echo", {"a": [1, "ü", None]}, queue=queue, timeout=10, context=context)
        assert result == {
            "arguments": {"a": [1, "ü", None]},
            "context": {"request_id": "req-2", "project_id": "project-2"},
        }
        with pytest.raises(RemoteError) as caught:
            await client.call("fail", {}, queue=queue, timeout=10)
        assert (caught.value.kind, caught.value.message, caught.value.code) == (
            "ValueError",
            "the value is bad",
            "remote",
        )
        await client.cast("note", {"text": "hello"}, queue=queue)
        assert await peer.event() == {"noted": {"text": "hello"}}
