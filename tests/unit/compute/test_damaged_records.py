"""What a start does with records that an accident has damaged: the daemon starts, and nothing of them is lost."""

from pathlib import Path
from uuid import UUID, uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from sev_agent.compute.record_store import JournalFailed, RecordStore
from tests.journal import NO_SPACE, opened, shelf
from tests.requests import record


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


def test_base_of_a_disk_that_was_set_aside(store: RecordStore) -> None:
    """An image below a disk whose record cannot be read stays protected: a guest may run on it."""
    saved = record(base_image=Path("/images/base"))
    store.save(saved)
    path = store.files(saved.uuid).record
    path.write_bytes(path.read_bytes().replace(b'"state"', b'"colour": "red", "state"'))

    assert opened(store.directory).bases_set_aside == {Path("/images/base")}
    assert opened(store.directory).bases_set_aside == {Path("/images/base")}
