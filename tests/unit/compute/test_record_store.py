"""The journal: what was written stands in it, whole."""

import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from uuid import uuid4

import pytest

from sev_agent.compute.record import Fault, State
from sev_agent.compute.record_store import JournalFailed, RecordStore
from sev_agent.durable import write_durably
from sev_agent.errors import InvalidRequest
from sev_agent.messaging.envelope import Priority
from sev_agent.messaging.spool import Letter
from sev_agent.sev.generation import Generation
from tests.journal import NO_SPACE, opened, shelf
from tests.requests import instance, record


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


def test_saves_at_once(store: RecordStore) -> None:
    """Writers of one record and of many never leave a mixture."""
    records = [record(State.BUILDING) for _ in range(4)]
    with ThreadPoolExecutor(8) as writers:
        for _ in range(10):
            for one in records:
                writers.submit(store.save, one.with_(state=State.ACTIVE, generation=Generation.SEV))

    assert {one.uuid: one for one in opened(store.directory)} == {one.uuid: one for one in store}
    assert {one.state for one in store} == {State.ACTIVE}


def test_saved_while_a_letter_is_settled(store: RecordStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record that is freed of a letter just as it changes is changed in the end, and free of it."""
    saved = record(State.BUILDING)
    letter = Letter(sequence=1, message_id="m", event_type="sev.instance.a", priority=Priority.INFO, body="{}")
    store.save(saved, owing=letter)
    writing, go_on = threading.Event(), threading.Event()

    def slowly(path: Path, content: bytes) -> None:
        monkeypatch.undo()
        writing.set()
        assert go_on.wait(60)
        write_durably(path, content)

    monkeypatch.setattr("sev_agent.compute.record_store.write_durably", slowly)
    with ThreadPoolExecutor(2) as writers:
        settling = writers.submit(store.settle, saved.uuid, 1)
        assert writing.wait(60)
        saving = writers.submit(store.save, saved.with_(state=State.ACTIVE))
        wait({saving}, timeout=0.1)  # it has to wait for its turn
        go_on.set()
        settling.result(60)
        saving.result(60)

    for each in (store, opened(store.directory)):
        found = each.get(saved.uuid)
        assert found is not None
        assert (found.state, found.owed) == (State.ACTIVE, ())
