"""What stands in a notification, and that the end of an operation is told exactly if it is true."""

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest

from sev_agent.compute.announcements import Announcements
from sev_agent.compute.outbox import Outbox
from sev_agent.compute.record import Fault, State
from sev_agent.compute.record_store import JournalFailed, RecordStore, Superseded
from sev_agent.config import NotificationsSection
from sev_agent.errors import InvalidRequest
from sev_agent.messaging.notifications import Notifier
from sev_agent.messaging.spool import Spool
from tests.journal import opened
from tests.requests import record
from tests.unit.compute.listener import Listener


@pytest.fixture
def outbox(listener: Listener, store: RecordStore, tmp_path: Path) -> Outbox:
    box = Outbox(cast("Notifier", listener), Spool(tmp_path / "notifications"), store, NotificationsSection())
    box.open()
    return box


@pytest.fixture
def announcements(outbox: Outbox, store: RecordStore) -> Announcements:
    return Announcements(outbox, store, "node1")


@pytest.fixture
def listener() -> Listener:
    return Listener()


async def test_content(listener: Listener, announcements: Announcements, outbox: Outbox) -> None:
    """A notification tells who, which instance, in which state, of which request, and what more there is."""
    known = record(State.BUILDING)

    announcements.create(known, "progress", step="disk", seconds=0.5)

    async with listener.hearing(outbox):
        heard = await listener.next()
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
        "updated_at": known.updated_at.isoformat(),
        "generation": "amd-sev",
        "fault": None,
        "step": "disk",
        "seconds": 0.5,
    }


async def test_error(listener: Listener, announcements: Announcements, outbox: Outbox) -> None:
    """An error goes to the errors' topic, with the fault."""
    fault = Fault(code="image.missing", message="there is none", step="image")

    await announcements.conclude(record(State.ERROR, fault=fault), "create", "error")

    async with listener.hearing(outbox):
        heard = await listener.next()
    assert heard.event_type == "sev.instance.create.error"
    assert heard.priority == "error"
    assert cast("dict[str, Any]", heard.payload["fault"])["code"] == "image.missing"


async def test_refused(listener: Listener, announcements: Announcements, outbox: Outbox) -> None:
    """A refused request is told with what could be read of it, were it no text at all, before it is answered."""
    error = InvalidRequest("is wrong", field="instance.uuid", remedy="correct it")

    async with listener.hearing(outbox):
        for uuid in (None, "not-a-uuid", "\x00\uffff"):
            await announcements.refused(uuid, "req-9", error)

            heard = listener.taken.get_nowait()
            assert heard.event_type == "sev.instance.create.error"
            assert heard.payload["instance_uuid"] == uuid
            assert cast("dict[str, Any]", heard.payload["fault"])["field"] == "instance.uuid"


async def test_end_is_owed_until_it_is_told(
    listener: Listener, announcements: Announcements, outbox: Outbox, store: RecordStore
) -> None:
    """The record that is saved owes the notification, over later saves too, and is freed once the broker has it."""
    active = record(State.ACTIVE)
    await announcements.conclude(active, "create", "end")
    store.save(active.with_(state=State.STOPPED))
    again = opened(store.directory)
    (owed,) = next(iter(again)).owed

    async with listener.hearing(outbox):
        heard = await listener.next()

    assert heard.message_id == owed.message_id
    present = store.get(active.uuid)
    assert present is not None
    assert (present.owed, present.state) == ((), State.STOPPED)
    assert b"owed" not in store.files(active.uuid).record.read_bytes()


async def test_end_that_is_not_true(
    listener: Listener,
    announcements: Announcements,
    outbox: Outbox,
    store: RecordStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An end that a deletion superseded, or that the journal did not take, is not told."""
    leaving = record(State.DELETING)
    store.save(leaving)
    with pytest.raises(Superseded):
        await announcements.conclude(leaving.with_(state=State.ACTIVE), "create", "end")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(RecordStore, "_write", full)
    with pytest.raises(JournalFailed):
        await announcements.conclude(record(), "create", "end")
    assert outbox.waiting == 0


async def test_end_that_is_cancelled(announcements: Announcements, outbox: Outbox, store: RecordStore) -> None:
    """Cancelled while the record is written, the end is told all the same: it is true by then."""
    active = record(State.ACTIVE)
    ending = asyncio.create_task(announcements.conclude(active, "create", "end"))
    await asyncio.sleep(0)
    ending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await ending
    assert store.get(active.uuid) is not None
    assert outbox.waiting == 1
