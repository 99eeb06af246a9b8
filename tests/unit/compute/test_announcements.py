"""Notifications leave in order, wait for the broker, and are not lost at a stop."""

import asyncio
import contextlib
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from sev_agent.compute import announcements as module
from sev_agent.compute.announcements import Announcements
from sev_agent.compute.record import Fault, State
from sev_agent.errors import InvalidRequest
from sev_agent.messaging import envelope
from sev_agent.messaging.broker import BrokerUnavailable
from sev_agent.messaging.envelope import Notification
from sev_agent.messaging.notifications import Notifier
from tests.requests import record


class Broker:
    """Takes notifications while it is ``up``; ``holding`` keeps a publish unconfirmed."""

    def __init__(self) -> None:
        self.up = True
        self.holding: asyncio.Event | None = None
        self.began = asyncio.Event()
        self.taken: asyncio.Queue[Notification] = asyncio.Queue()

    async def send(self, notification: Notification) -> None:
        self.began.set()
        envelope.encode_notification(notification)
        if not self.up:
            raise BrokerUnavailable("not connected")
        if self.holding is not None:
            await self.holding.wait()
        self.taken.put_nowait(notification)

    async def next(self) -> Notification:
        async with asyncio.timeout(10):
            return await self.taken.get()


@pytest.fixture
def broker() -> Broker:
    return Broker()


@pytest.fixture
def announcements(broker: Broker) -> Announcements:
    return Announcements(cast("Notifier", broker), "node1")


async def stop(task: "asyncio.Task[None]") -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def test_content(broker: Broker, announcements: Announcements) -> None:
    """A notification tells who, which instance, in which state, of which request, and what more there is."""
    task = asyncio.create_task(announcements.run())
    known = record(State.BUILDING)

    announcements.create(known, "progress", step="disk", seconds=0.5)

    heard = await broker.next()
    assert heard.event_type == "sev.instance.create.progress"
    assert heard.publisher_id == "sev_agent.node1"
    assert heard.context.request_id == "req-1"
    assert heard.priority == "info"
    assert heard.payload == {
        "host": "node1",
        "instance_uuid": str(known.uuid),
        "name": "web",
        "project_id": "project",
        "state": "building",
        "generation": "amd-sev",
        "fault": None,
        "step": "disk",
        "seconds": 0.5,
    }
    await stop(task)


async def test_error(broker: Broker, announcements: Announcements) -> None:
    """An error goes to the errors' topic, with the fault."""
    task = asyncio.create_task(announcements.run())
    fault = Fault(code="image.missing", message="there is none", step="image")

    announcements.create(record(State.ERROR, fault=fault), "error")

    heard = await broker.next()
    assert heard.priority == "error"
    assert cast("dict[str, Any]", heard.payload["fault"])["code"] == "image.missing"
    await stop(task)


async def test_refused(broker: Broker, announcements: Announcements) -> None:
    """A refused request is told with what could be read of it, were it no text at all."""
    task = asyncio.create_task(announcements.run())
    error = InvalidRequest("is wrong", field="instance.uuid", remedy="correct it")

    for uuid in (None, "not-a-uuid", "\ud800\x00"):
        announcements.refused(uuid, "req-9", error)

        heard = await broker.next()
        assert heard.event_type == "sev.instance.create.error"
        assert heard.payload["instance_uuid"] == uuid
        assert cast("dict[str, Any]", heard.payload["fault"])["field"] == "instance.uuid"
    await stop(task)


async def test_broker_away(broker: Broker, announcements: Announcements, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the broker is away they wait, and then arrive once each, in their order."""
    monkeypatch.setattr(module, "_RETRY_SECONDS", 0.01)
    broker.up = False
    task = asyncio.create_task(announcements.run())
    for number in range(20):
        announcements.host("tick", {"number": number})
    await broker.began.wait()
    assert announcements.waiting == 20
    broker.up = True

    assert [(await broker.next()).payload["number"] for _ in range(20)] == list(range(20))
    await stop(task)
    assert broker.taken.empty()
    assert announcements.waiting == 0


async def test_stop_sends_what_is_left(broker: Broker, announcements: Announcements) -> None:
    """A stop in the middle of a publish loses neither that one nor those behind it."""
    broker.holding = asyncio.Event()
    task = asyncio.create_task(announcements.run())
    for number in range(3):
        announcements.host("tick", {"number": number})
    await broker.began.wait()
    broker.holding.set()

    await stop(task)

    assert [(await broker.next()).payload["number"] for _ in range(3)] == [0, 1, 2]


@pytest.mark.parametrize("hangs", [True, False])
async def test_stop_without_a_broker(
    broker: Broker, announcements: Announcements, monkeypatch: pytest.MonkeyPatch, *, hangs: bool
) -> None:
    """A stop does not wait for a broker that is away, and says how many notifications were not sent."""
    monkeypatch.setattr(module, "_FLUSH_SECONDS", 0.05)
    if hangs:
        broker.holding = asyncio.Event()
    else:
        broker.up = False
    task = asyncio.create_task(announcements.run())
    for _ in range(3):
        announcements.host("tick", {})
    await broker.began.wait()

    with capture_logs() as logs:
        async with asyncio.timeout(10):
            await stop(task)

    (line,) = (line for line in logs if line["event"] == "announcements.unsent")
    assert line["left"] == 3


async def test_bounded(broker: Broker, announcements: Announcements, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the bound the oldest go, each with a log."""
    monkeypatch.setattr(module, "MAX_WAITING", 5)
    with capture_logs() as logs:
        for number in range(7):
            announcements.host("tick", {"number": number})
    assert announcements.waiting == 5
    assert [line["event"] for line in logs] == ["announcements.dropped"] * 2
    task = asyncio.create_task(announcements.run())

    assert [(await broker.next()).payload["number"] for _ in range(5)] == [2, 3, 4, 5, 6]
    await stop(task)
