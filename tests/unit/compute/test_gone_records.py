"""What a host remembers of instances that are gone, and for how long."""

import threading
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from sev_agent.compute.record import Fault, State
from sev_agent.compute.record_store import RecordStore, Superseded
from sev_agent.messaging.envelope import Priority
from sev_agent.messaging.spool import Letter
from tests.journal import opened
from tests.requests import record


@pytest.mark.parametrize("last", [State.DELETING, State.DELETED])
@pytest.mark.parametrize("late", [state for state in State if not state.is_last])
def test_nothing_follows_a_deletion(store: RecordStore, last: State, late: State) -> None:
    """A build that is late writes nothing over a deletion that was accepted."""
    saved = record(State.BUILDING)
    store.save(saved)
    deleting = saved.with_(state=last)
    store.save(deleting)

    with pytest.raises(Superseded):
        store.save(saved.with_(state=late))

    assert store.get(saved.uuid) == deleting
    assert opened(store.directory).get(saved.uuid) == deleting


def test_deletion_ends(store: RecordStore) -> None:
    """A deletion under way becomes a deletion that ended."""
    deleting = record(State.DELETING)
    store.save(deleting)

    store.save(deleting.deleted())

    assert opened(store.directory).get(deleting.uuid) == deleting.deleted().model_copy(
        update={"updated_at": store.get(deleting.uuid).updated_at}  # type: ignore[union-attr]
    )


def test_forgotten(store: RecordStore) -> None:
    """Only what has left is forgotten, deleted or built elsewhere, and only what left long ago."""
    long_ago = datetime.now(UTC) - timedelta(days=2)
    old = {state: record(state).model_copy(update={"updated_at": long_ago}) for state in State}
    young = record(State.DELETED)
    for saved in (*old.values(), young):
        store.save(saved)

    store.forget_gone(older_than=timedelta(days=1), most=10)

    kept = {one.uuid for one in old.values()} - {old[State.DELETED].uuid, old[State.RESCHEDULED].uuid} | {young.uuid}
    asked = {one.uuid for one in (*old.values(), young)}
    assert _known(store, asked) == _known(opened(store.directory), asked) == kept


def test_forgotten_because_they_are_many(store: RecordStore) -> None:
    """No more are remembered than a number: the latest, and what still has to be told; what is here never counts."""
    now = datetime.now(UTC)
    gone = [
        record(state).model_copy(update={"updated_at": now - timedelta(minutes=age)})
        for age, state in enumerate([State.DELETED, State.RESCHEDULED] * 3)
    ]
    here = [record(state) for state in State if not state.is_gone]
    for saved in (*gone[1:], *here, gone[0]):
        store.save(saved)
    owed = Letter(sequence=1, message_id="m", event_type="sev.instance.delete.end", priority=Priority.INFO, body="{}")
    store.save(gone[5], owing=owed)

    store.forget_gone(older_than=timedelta(days=1), most=3)

    kept = {one.uuid for one in (*gone[:3], gone[5], *here)}
    asked = {one.uuid for one in (*gone, *here)}
    assert _known(store, asked) == _known(opened(store.directory), asked) == kept
    assert {one.uuid for one in store.here()} == {one.uuid for one in here}


def _known(store: RecordStore, asked: Iterable[UUID]) -> set[UUID]:
    return {uuid for uuid in asked if store.get(uuid) is not None}


def test_gone_for_a_while(store: RecordStore) -> None:
    """What is gone is known as it was, no longer among the others, until it is sent here again."""
    saved = record(State.RESCHEDULED, fault=Fault(code="c", message="m", step="start"))
    store.save(saved)
    assert list(store) == [saved]

    store.forget_gone(older_than=timedelta(days=1), most=1)

    for each in (store, opened(store.directory)):
        assert list(each) == []
        assert each.get(saved.uuid) == saved
    again = saved.with_(state=State.BUILDING)
    store.save(again)
    assert list(store) == [again]
    assert store.get(saved.uuid) == again


@pytest.mark.parametrize("folded", [False, True], ids=["as it is folded", "as it is forgotten"])
def test_sent_again_meanwhile(store: RecordStore, monkeypatch: pytest.MonkeyPatch, *, folded: bool) -> None:
    """What is sent here again just as it is made small, or forgotten, is an instance of this host, on disk too."""
    gone = record(State.RESCHEDULED)
    store.save(gone)
    if folded:
        store.forget_gone(older_than=timedelta(days=1), most=1)
    again = record(State.BUILDING, gone.uuid)
    lock = RecordStore._lock

    def late(self: RecordStore, uuid: UUID) -> threading.Lock:
        monkeypatch.undo()
        store.save(again)
        return lock(self, uuid)

    monkeypatch.setattr(RecordStore, "_lock", late)
    store.forget_gone(older_than=timedelta(0), most=0)

    assert list(store) == [again]
    assert store.get(gone.uuid) == opened(store.directory).get(gone.uuid) == again


def test_deleted_for_a_while(store: RecordStore) -> None:
    """What was deleted a while ago does not come back by what an earlier request still had to say."""
    deleted = record(State.DELETED)
    store.save(deleted)
    store.forget_gone(older_than=timedelta(days=1), most=1)

    with pytest.raises(Superseded):
        store.save(deleted.with_(state=State.ACTIVE))
    assert store.get(deleted.uuid) == deleted
