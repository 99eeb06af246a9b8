"""The journal: what stands in it after any accident."""

import json
import os
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from sev_agent.compute.qcow2 import BadHeader
from sev_agent.compute.record import Fault, Record, State
from sev_agent.compute.record_store import JournalFailed, RecordStore, Superseded
from sev_agent.errors import InvalidRequest
from sev_agent.messaging.envelope import Priority
from sev_agent.messaging.spool import Letter
from sev_agent.sev.generation import Generation
from tests.requests import instance, record

NO_SPACE = OSError(28, "No space left on device")


def opened(directory: Path) -> RecordStore:
    """The store as a daemon that has just started reads it."""
    store = RecordStore(directory)
    store.open()
    return store


@pytest.fixture
def store(tmp_path: Path) -> RecordStore:
    return opened(tmp_path / "instances")


def shelf(store: RecordStore) -> list[Path]:
    directory = store.directory / ".set-aside"
    return sorted(directory.iterdir()) if directory.exists() else []


def test_survives_a_restart(store: RecordStore) -> None:
    """A record reads back as it was written, with every field set."""
    fault = Fault.of(InvalidRequest("is wrong", field="instance.name", remedy="correct it"), "image")
    saved = record(
        State.ERROR,
        base_image=Path("/images/a"),
        firmware=Path("/fw"),
        fault=fault,
        instance=instance(networks=[{"type": "user"}], user_data="YQ==", metadata={"a": "b"}),
    )
    store.save(saved)

    again = opened(store.directory)

    assert again.get(saved.uuid) == saved
    assert list(again) == [saved]
    assert not shelf(store)


def test_modes(store: RecordStore) -> None:
    """QEMU may pass through to its disk; the record, with a tenant's secrets, is the daemon's alone."""
    saved = record()
    store.save(saved)

    files = store.files(saved.uuid)
    assert store.directory.stat().st_mode & 0o777 == 0o711
    assert files.directory.stat().st_mode & 0o777 == 0o711
    assert files.record.stat().st_mode & 0o777 == 0o600


def test_replaced_atomically(store: RecordStore) -> None:
    """Whoever reads while it is written sees the old record or the new one."""
    saved = record(State.BUILDING)
    store.save(saved)
    stop = threading.Event()
    seen: set[str] = set()

    def read() -> None:
        while not stop.is_set():
            seen.add(json.loads(store.files(saved.uuid).record.read_bytes())["state"])

    with ThreadPoolExecutor(1) as readers:
        reading = readers.submit(read)
        for _ in range(50):
            store.save(saved.with_(state=State.BUILDING))
            store.save(saved.with_(state=State.ACTIVE))
        stop.set()
        reading.result(timeout=10)

    assert seen == {"building", "active"}


def _damage(path: Path, kind: str, whole: bytes) -> None:
    other = {
        "cut short": whole[: len(whole) // 2],
        "empty": b"",
        "not JSON": b"\x00" * len(whole),
        "not UTF-8": whole.replace(b"web", b"w\xff\xfeb"),
        "of a newer version": whole.replace(b'"state"', b'"colour": "red", "state"'),
        "of another format": whole.replace(b"{", b'{"format": 2,', 1),
        "of another instance": whole.replace(path.parent.name.encode(), str(uuid4()).encode()),
        "too large": whole + b" " * 5_000_000,
        "a list": b"[]",
        "nested without end": b"[" * 100_000,
    }[kind]
    assert other != whole
    path.write_bytes(other)


@pytest.mark.parametrize(
    "kind",
    [
        "cut short",
        "empty",
        "not JSON",
        "not UTF-8",
        "of a newer version",
        "of another format",
        "of another instance",
        "too large",
        "a list",
        "nested without end",
    ],
)
def test_damaged_record(store: RecordStore, kind: str) -> None:
    """A record that cannot be read is set aside whole, with a log that says why; the others are read."""
    damaged, whole = record(), record()
    for saved in (damaged, whole):
        store.save(saved)
    path = store.files(damaged.uuid).record
    _damage(path, kind, path.read_bytes())
    content = path.read_bytes()

    with capture_logs() as logs:
        again = opened(store.directory)

    assert list(again) == [whole]
    assert not path.parent.exists()
    (kept,) = shelf(store)
    assert (kept / path.name).read_bytes() == content
    (line,) = (line for line in logs if line["event"] == "record.set_aside")
    assert line["log_level"] == "error"
    assert line["kept_as"] == str(kept)
    assert line["reason"]


def test_directory_without_a_record(store: RecordStore) -> None:
    """A disk without a record is set aside, not removed: it may be somebody's data."""
    directory = store.directory / str(uuid4())
    directory.mkdir()
    (directory / "disk.qcow2").write_bytes(b"data")

    opened(store.directory)

    (kept,) = shelf(store)
    assert (kept / "disk.qcow2").read_bytes() == b"data"


@pytest.mark.parametrize("left", [[], [".instance.json.x1y2z3.new"], [".notes.new"]])
def test_foreign_directory(store: RecordStore, left: list[str]) -> None:
    """What is not named as an instance's directory is somebody's: it is set aside as it is, even if it is empty."""
    directory = store.directory / "lost+found"
    directory.mkdir()
    for name in left:
        (directory / name).write_bytes(b"theirs")

    again = opened(store.directory)
    opened(store.directory)

    assert not list(again)
    (kept,) = shelf(store)
    assert kept.name.startswith("lost+found.")
    assert [path.name for path in kept.iterdir()] == left


@pytest.mark.parametrize("name", ["lost+found", str(uuid4())])
def test_unreadable_directory(store: RecordStore, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A directory that cannot even be listed is set aside, and the start goes on."""
    saved = record()
    store.save(saved)
    (store.directory / name).mkdir()
    _refuse(monkeypatch, "iterdir", store.directory / name, PermissionError(13, "Permission denied"))

    assert list(opened(store.directory)) == [saved]

    assert [kept.name.partition(".")[0] for kept in shelf(store)] == [name]


@pytest.mark.parametrize("refusal", [OSError(18, "Invalid cross-device link"), NO_SPACE], ids=["moving", "making room"])
def test_directory_that_cannot_be_set_aside(
    store: RecordStore, monkeypatch: pytest.MonkeyPatch, refusal: OSError
) -> None:
    """What cannot be moved stays as it is, is logged, keeps its image, and is never written over."""
    whole, damaged = record(), record(base_image=Path("/images/base"))
    for saved in (whole, damaged):
        store.save(saved)
    path = store.files(damaged.uuid).record
    _damage(path, "of a newer version", path.read_bytes())
    content = path.read_bytes()
    if refusal is NO_SPACE:
        _refuse(monkeypatch, "mkdir", store.directory / ".set-aside", refusal)
    else:
        _refuse(monkeypatch, "rename", path.parent, refusal)

    with capture_logs() as logs:
        again = opened(store.directory)

    assert list(again) == [whole]
    assert again.bases_set_aside == {Path("/images/base")}
    (line,) = (line for line in logs if line["event"] == "record.left_out")
    assert line["path"] == str(path.parent)
    assert str(refusal) in line["error"]
    with pytest.raises(JournalFailed, match="cannot be read"):
        again.save(damaged)
    assert path.read_bytes() == content


def _refuse(monkeypatch: pytest.MonkeyPatch, what: str, path: Path, refusal: OSError) -> None:
    """Have the kernel refuse ``what`` of ``path``; root is refused nothing by modes."""
    does = getattr(Path, what)

    def refused(self: Path, *args: object, **kwargs: object) -> object:
        if self == path:
            raise refusal
        return does(self, *args, **kwargs)

    monkeypatch.setattr(Path, what, refused)


@pytest.mark.parametrize("left", [[], [".instance.json.x1y2z3.new"]])
def test_power_loss_at_the_first_write(store: RecordStore, left: list[str]) -> None:
    """What a power loss left of a first write is removed: nothing was promised to anyone."""
    directory = store.directory / str(uuid4())
    directory.mkdir()
    for name in left:
        (directory / name).write_bytes(b'{"format"')

    again = opened(store.directory)

    assert not list(again)
    assert not directory.exists()
    assert not shelf(store)


def test_power_loss_at_a_later_write(store: RecordStore) -> None:
    """A half-written successor changes nothing: the record before it stands, and what was half there is gone."""
    saved = record()
    store.save(saved)
    directory = store.files(saved.uuid).directory
    for name in (".instance.json.abc.new", ".nvram.fd.abc.new", ".disk.qcow2.new"):
        (directory / name).write_bytes(b"{")

    assert opened(store.directory).get(saved.uuid) == saved
    assert [path.name for path in directory.iterdir()] == ["instance.json"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(st.data())
def test_any_bytes(store: RecordStore, data: st.DataObject) -> None:
    """Whatever bytes stand where a record should: the daemon starts, and no instance is made up from them."""
    saved = record()
    store.save(saved)
    path = store.files(saved.uuid).record
    whole = path.read_bytes()
    position = data.draw(st.integers(0, len(whole) - 1))
    path.write_bytes(whole[:position] + data.draw(st.binary(max_size=8)) + whole[position + 1 :])

    again = opened(store.directory)

    found = again.get(saved.uuid)
    assert found is None or found.uuid == saved.uuid
    assert all(one.uuid == UUID(store.files(one.uuid).directory.name) for one in again)


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


def test_tombstone() -> None:
    """What is kept of a deleted instance has none of the tenant's own data, and no hold on an image."""
    full = record(
        base_image=Path("/images/a"),
        instance=instance(user_data="c2VjcmV0", metadata={"secret": "m"}, public_keys={"secret": "k"}),
    )

    tombstone = full.deleted()

    assert tombstone.uuid == full.uuid
    assert tombstone.base_image is None
    assert "secret" not in tombstone.model_dump_json()
    assert "c2VjcmV0" not in tombstone.model_dump_json()


def test_full_disk(store: RecordStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without room for a record the earlier one stands, in memory and on disk, and the error says what to do."""
    saved = record(State.BUILDING)
    store.save(saved)
    monkeypatch.setattr("sev_agent.compute.record_store.write_durably", _fail)

    with pytest.raises(JournalFailed, match=r"No space left on device.*free space") as caught:
        store.save(saved.with_(state=State.ACTIVE))

    assert caught.value.retryable
    assert store.get(saved.uuid) == saved
    assert opened(store.directory).get(saved.uuid) == saved


def test_full_disk_at_the_first_write(store: RecordStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that cannot be written down leaves nothing behind."""
    monkeypatch.setattr("sev_agent.compute.record_store.write_durably", _fail)

    with pytest.raises(JournalFailed):
        store.save(record())

    assert not list(store)
    assert not list(store.directory.iterdir())


def _fail(*_: object, **__: object) -> None:
    raise NO_SPACE


def test_synced(store: RecordStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new record's directory, and the removal of what a build made, are on the disk before anyone hears of them."""
    synced: list[Path] = []
    fsync = os.fsync

    def note(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink())
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    saved = record()
    directory = store.files(saved.uuid).directory
    store.save(saved)
    assert [path for path in synced if path.is_dir()] == [store.directory, directory]
    synced.clear()
    store.remove_files(saved.uuid)
    assert synced == [directory]


def test_removed_files(store: RecordStore) -> None:
    """All that a build made goes, half-made things too; the record stays. Twice is once."""
    saved = record()
    store.save(saved)
    files = store.files(saved.uuid)
    for path in (files.disk, files.config_drive, files.nvram, files.console_log, files.directory / ".disk.qcow2.abc"):
        path.write_bytes(b"")

    store.remove_files(saved.uuid)
    store.remove_files(saved.uuid)
    store.remove_files(uuid4())

    assert list(files.directory.iterdir()) == [files.record]


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


def test_base_of_a_disk_that_was_set_aside(store: RecordStore) -> None:
    """An image below a disk whose record cannot be read stays protected: a guest may run on it."""
    saved = record(base_image=Path("/images/base"))
    store.save(saved)
    path = store.files(saved.uuid).record
    path.write_bytes(path.read_bytes().replace(b'"state"', b'"colour": "red", "state"'))

    assert opened(store.directory).bases_set_aside == {Path("/images/base")}
    assert opened(store.directory).bases_set_aside == {Path("/images/base")}


def test_faults() -> None:
    """A fault tells the step, the code and what to do; one that is not ours tells what it was."""
    ours = Fault.of(InvalidRequest("is wrong", field="instance.name", remedy="correct it"), "image")
    full = Fault.of(NO_SPACE, "config_drive")
    unknown = Fault.of(BadHeader("odd"), "disk")

    assert (ours.code, ours.step, ours.field, ours.remedy) == (
        "request.invalid",
        "image",
        "instance.name",
        "correct it",
    )
    assert (full.code, full.retryable) == ("disk.full", True)
    assert full.remedy
    assert (unknown.code, unknown.message) == ("internal", "BadHeader: odd")


def test_saves_at_once(store: RecordStore) -> None:
    """Writers of one record and of many never leave a mixture."""
    records = [record(State.BUILDING) for _ in range(4)]
    with ThreadPoolExecutor(8) as writers:
        for _ in range(10):
            for one in records:
                writers.submit(store.save, one.with_(state=State.ACTIVE, generation=Generation.SEV))

    assert {one.uuid: one for one in opened(store.directory)} == {one.uuid: one for one in store}
    assert {one.state for one in store} == {State.ACTIVE}


@pytest.mark.parametrize(
    ("state", "unfinished", "files"),
    [
        (State.BUILDING, True, True),
        (State.ACTIVE, False, True),
        (State.STOPPED, False, True),
        (State.FAILING, True, True),
        (State.ERROR, False, False),
        (State.RESCHEDULED, False, False),
        (State.DELETING, True, True),
        (State.DELETED, False, False),
    ],
)
def test_states(state: State, *, unfinished: bool, files: bool) -> None:
    """What is resumed after a restart, and what may still lean on an image."""
    assert state.is_unfinished is unfinished
    assert state.has_files is files
    assert Record.accept(instance(), "req").with_(state=state).state is state


def test_clock_is_set_back() -> None:
    """A later change has the later time, also where the clock was set back between the two."""
    ahead = record().model_copy(update={"updated_at": datetime.now(UTC) + timedelta(days=1)})
    assert ahead.with_(state=State.ACTIVE).updated_at > ahead.updated_at
