"""The journal of notifications survives a crash at any byte, damage, and a disk that is full."""

import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from structlog.testing import capture_logs

from sev_agent.messaging.envelope import Priority
from sev_agent.messaging.spool import Letter, Spool

JOURNAL = "spool.journal"


@pytest.fixture(scope="module", autouse=True)
def synced() -> Iterator[list[int]]:
    """Counts what is flushed to the disk, and spares the tests the wait."""
    descriptors: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", descriptors.append)
        patch.setattr(os, "fdatasync", descriptors.append)
        yield descriptors


def letter(sequence: int, *, size: int = 20) -> Letter:
    return Letter(
        sequence=sequence,
        message_id=f"id-{sequence}",
        event_type="sev.instance.create.end",
        priority=Priority.INFO,
        body="\n" + "x" * size,
    )


def sequences(directory: Path) -> list[int]:
    """What a daemon that starts now finds."""
    return [each.sequence for each in Spool(directory).open()]


def test_empty(tmp_path: Path) -> None:
    """A spool that was never used is empty, and needs no file."""
    assert Spool(tmp_path / "new").open() == []
    assert not (tmp_path / "new" / JOURNAL).exists()


def test_letters_come_back_whole(tmp_path: Path) -> None:
    """What was committed and has not left is there after a restart, as it was, in order."""
    spool = Spool(tmp_path)
    spool.open()
    spool.commit([letter(1), letter(2)], [])
    spool.commit([letter(3)], [1])

    assert Spool(tmp_path).open() == [letter(2), letter(3)]


def test_flushed(tmp_path: Path, synced: list[int]) -> None:
    """Letters are on the disk when the commit returns, in one flush for all; what left needs none."""
    spool = Spool(tmp_path)
    spool.open()
    spool.commit([letter(1)], [])
    synced.clear()
    spool.commit([letter(2), letter(3)], [1])
    assert len(synced) == 1
    spool.commit([], [2])
    assert len(synced) == 1
    spool.close()


def test_cut_at_every_byte(tmp_path: Path) -> None:
    """Cut at any byte, a journal gives the letters whose lines are whole, silently, and takes more after them."""
    spool = Spool(tmp_path)
    spool.open()
    ends = {0: 0}
    for sequence in (1, 2, 3):
        spool.commit([letter(sequence)], [])
        ends[sequence] = (tmp_path / JOURNAL).stat().st_size
    content = (tmp_path / JOURNAL).read_bytes()

    for length in range(len(content) + 1):
        (tmp_path / JOURNAL).write_bytes(content[:length])
        # A line lacks nothing but its end when only that was cut.
        whole = [sequence for sequence in (1, 2, 3) if ends[sequence] - 1 <= length]
        with capture_logs() as logs:
            again = Spool(tmp_path)
            assert [each.sequence for each in again.open()] == whole
        assert logs == []
        again.commit([letter(9)], [])
        assert sequences(tmp_path) == [*whole, 9]
        again.close()


@given(st.binary(min_size=1, max_size=60), st.integers(min_value=0, max_value=1))
def test_any_bytes_between(garbage: bytes, at: int) -> None:
    """Whatever stands among the lines, the start succeeds, keeps every whole line, and sets the file aside."""
    with TemporaryDirectory() as name:
        directory = Path(name)
        spool = Spool(directory)
        spool.open()
        spool.commit([letter(1)], [])
        spool.commit([letter(2)], [])
        spool.close()
        lines = (directory / JOURNAL).read_bytes().splitlines(keepends=True)
        damaged = b"".join([*lines[:at], garbage.replace(b"\n", b"\x00") + b"\n", *lines[at:]])
        (directory / JOURNAL).write_bytes(damaged)

        with capture_logs() as logs:
            assert sequences(directory) == [1, 2]

        assert [line["event"] for line in logs] == ["spool.set_aside"]
        assert Path(logs[0]["kept_as"]).read_bytes() == damaged
        with capture_logs() as logs:
            assert sequences(directory) == [1, 2]
        assert logs == []


@pytest.mark.parametrize("content", [b"\x00" * 4096, b"[foreign]\nfile = true\n", b"00000000 {}\n", b"PK\x03\x04"])
def test_foreign_file(tmp_path: Path, content: bytes) -> None:
    """A file that is no journal is set aside, and the spool works."""
    (tmp_path / JOURNAL).write_bytes(content)
    spool = Spool(tmp_path)
    with capture_logs() as logs:
        assert spool.open() == []
    assert [line["event"] for line in logs] == ["spool.set_aside"]
    spool.commit([letter(1)], [])
    assert sequences(tmp_path) == [1]
    spool.close()


def test_damage_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A damaged journal that cannot be set aside keeps nobody from starting, nor what can be read of it."""
    spool = Spool(tmp_path)
    spool.open()
    spool.commit([letter(1)], [])
    spool.close()
    journal = tmp_path / JOURNAL
    journal.write_bytes(b"damaged\n" + journal.read_bytes())

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "hardlink_to", full)
    spool = Spool(tmp_path)
    with capture_logs() as logs:
        assert spool.open() == [letter(1)]

    assert [line["event"] for line in logs] == ["spool.damaged"]
    assert journal.read_bytes().startswith(b"damaged")
    spool.commit([letter(2)], [])
    assert sequences(tmp_path) == [1, 2]
    spool.close()


def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that fails half way is told, harms nothing earlier, and is made up for by the next one."""
    spool = Spool(tmp_path)
    spool.open()
    spool.commit([letter(1)], [])
    write = os.write

    def half(descriptor: int, content: bytes) -> int:
        if len(content) < 10:
            raise OSError(28, "No space left on device")
        return write(descriptor, content[: len(content) // 2])

    with monkeypatch.context() as full:
        full.setattr(os, "write", half)
        with pytest.raises(OSError, match="No space"):
            spool.commit([letter(2)], [])
    assert sequences(tmp_path) == [1]

    spool.commit([letter(2), letter(3)], [1])
    assert sequences(tmp_path) == [2, 3]
    spool.close()


def test_file_stays_small(tmp_path: Path) -> None:
    """The file is emptied when nothing waits, and written anew when most of it is dead."""
    spool = Spool(tmp_path)
    spool.open()
    spool.commit([letter(1), letter(2)], [])
    spool.commit([], [1, 2])
    assert (tmp_path / JOURNAL).stat().st_size == 0

    spool.commit([letter(3)], [])
    largest = 0
    for sequence in range(4, 200):
        spool.commit([letter(sequence, size=50_000)], [sequence - 1] if sequence > 4 else [])
        largest = max(largest, (tmp_path / JOURNAL).stat().st_size)
    assert largest < 1_500_000
    assert sequences(tmp_path) == [3, 199]
    spool.close()


class CrashingSpool(RuleBasedStateMachine):
    """A spool whose process dies at any byte of any write; a commit that returned is never undone."""

    def __init__(self) -> None:
        super().__init__()
        self.room = TemporaryDirectory()
        self.directory = Path(self.room.name)
        self.sequence = 0
        self.kept: set[int] = set()
        self.spool = Spool(self.directory)
        self.spool.open()

    def teardown(self) -> None:
        self.spool.close()
        self.room.cleanup()

    @rule(count=st.integers(min_value=0, max_value=3), data=st.data())
    def commit(self, count: int, data: st.DataObject) -> None:
        came, gone = self._change(count, data)
        self.spool.commit([letter(sequence) for sequence in came], gone)
        self.kept = (self.kept | set(came)) - set(gone)

    @rule(count=st.integers(min_value=0, max_value=3), data=st.data())
    def die_while_committing(self, count: int, data: st.DataObject) -> None:
        path = self.directory / JOURNAL
        before = path.read_bytes() if path.exists() else b""
        came, gone = self._change(count, data)
        self.spool.commit([letter(sequence) for sequence in came], gone)
        self.spool.close()
        after = path.read_bytes() if path.exists() else b""
        if after.startswith(before):
            written = data.draw(st.integers(min_value=len(before), max_value=len(after)))
            path.write_bytes(after[:written])
        else:
            # A new file replaces the old one in one step, or not at all.
            path.write_bytes(data.draw(st.sampled_from([before, after])))
        self.spool = Spool(self.directory)
        found = {each.sequence for each in self.spool.open()}
        assert self.kept - set(gone) <= found <= self.kept | set(came)
        self.kept = found

    @invariant()
    def finds_what_was_kept(self) -> None:
        assert sequences(self.directory) == sorted(self.kept)

    def _change(self, count: int, data: st.DataObject) -> tuple[list[int], list[int]]:
        came = [self.sequence + number for number in range(1, count + 1)]
        self.sequence += count
        gone = data.draw(st.lists(st.sampled_from(sorted(self.kept)), unique=True)) if self.kept else []
        return came, gone


TestCrashingSpool = CrashingSpool.TestCase
TestCrashingSpool.settings = settings(max_examples=60, stateful_step_count=15)
