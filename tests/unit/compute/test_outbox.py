"""Notifications leave in order, and none is lost while the broker is away, whatever happens to the daemon."""

import asyncio
import contextlib
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import cast
from uuid import uuid4

import pytest
from structlog.testing import capture_logs

from sev_agent.compute import outbox as module
from sev_agent.compute.announcements import Announcements
from sev_agent.compute.outbox import Outbox
from sev_agent.compute.record import State
from sev_agent.compute.record_store import JournalFailed, RecordStore
from sev_agent.config import NotificationsSection
from sev_agent.messaging.notifications import Notifier
from sev_agent.messaging.spool import Letter, Spool
from tests.journal import opened
from tests.requests import record
from tests.unit.compute.listener import PATIENCE, Listener


class Life:
    """One life of a daemon over what is in ``directory``; the next one sees what a SIGKILL of it would leave."""

    def __init__(self, directory: Path, *, max_count: int = 10_000) -> None:
        self.listener = Listener()
        self.dropped: list[Letter] = []
        self.store = opened(directory / "instances")
        self.outbox = Outbox(
            cast("Notifier", self.listener),
            Spool(directory / "notifications"),
            self.store,
            NotificationsSection.model_construct(max_count=max_count, max_mb=1),
            on_dropped=self.dropped.append,
        )
        self.outbox.open()
        self.tell = Announcements(self.outbox, self.store, "node1")

    def ticks(self, *numbers: int) -> None:
        for number in numbers:
            self.tell.host("tick", {"number": number})

    async def is_safe(self) -> None:
        """Everything is with the broker or on the disk, and noted there."""
        async with asyncio.timeout(PATIENCE):
            while self.outbox._unsafe or self.outbox._to_settle or self.outbox._gone:  # noqa: ASYNC110 - polled from outside
                await asyncio.sleep(0.01)

    async def heard(self, count: int) -> list[int | str]:
        """The next ``count`` notifications, ticks by their number."""
        return [
            cast("int", each.payload["number"]) if "tick" in each.event_type else each.event_type
            for each in [await self.listener.next() for _ in range(count)]
        ]


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_RETRY_SECONDS", 0.01)
    monkeypatch.setattr(module, "_GRACE_SECONDS", 0.01)
    monkeypatch.setattr(module, "_FLUSH_SECONDS", 0.05)


async def test_broker_away(tmp_path: Path) -> None:
    """While the broker is away they wait, and then arrive once each, in their order; the disk is emptied."""
    life = Life(tmp_path)
    life.listener.can_send = False
    async with life.listener.hearing(life.outbox):
        life.ticks(*range(20))
        await life.is_safe()
        assert life.outbox.waiting == 20
        life.listener.can_send = True
        assert await life.heard(20) == list(range(20))
        await life.is_safe()
    assert life.listener.taken.empty()
    assert life.outbox.waiting == 0
    assert (tmp_path / "notifications/spool.journal").stat().st_size == 0


async def test_broker_there(tmp_path: Path) -> None:
    """What the broker takes at once never touches the disk."""
    life = Life(tmp_path)
    async with life.listener.hearing(life.outbox):
        life.ticks(1, 2)
        assert await life.heard(2) == [1, 2]
        await life.is_safe()
    assert not (tmp_path / "notifications/spool.journal").exists()


async def test_killed_during_an_outage(tmp_path: Path) -> None:
    """What was made during an outage arrives in order after it, though the daemon was killed twice in between."""
    directory = tmp_path / "0"
    for numbers in ((1, 2), (3, 4)):
        life = Life(directory)
        life.listener.can_send = False
        async with life.listener.hearing(life.outbox):
            life.ticks(*numbers)
            await life.is_safe()
            # What a SIGKILL would leave now; the stop below is of another life.
            directory = shutil.copytree(directory, tmp_path / str(numbers[-1]))
    life = Life(directory)
    life.ticks(5)
    async with life.listener.hearing(life.outbox):
        assert await life.heard(5) == [1, 2, 3, 4, 5]
    assert Life(directory).outbox.waiting == 0


async def test_killed_after_the_save(tmp_path: Path) -> None:
    """An end that is true and was not told when the daemon died is told by the next one, in its place, once."""
    life = Life(tmp_path)
    active = record(State.ACTIVE)
    await life.tell.conclude(active, "create", "end")
    await life.tell.conclude(active.deleted(), "delete", "end")

    life = Life(tmp_path)
    life.ticks(1)
    async with life.listener.hearing(life.outbox):
        assert await life.heard(3) == ["sev.instance.create.end", "sev.instance.delete.end", 1]
        await life.is_safe()
    life = Life(tmp_path)
    assert life.outbox.waiting == 0


async def test_killed_before_the_record_is_freed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An end that a record owes and the spool has too is one notification, not two."""
    life = Life(tmp_path)
    life.listener.can_send = False
    monkeypatch.setattr(RecordStore, "settle", lambda *_: None)
    async with life.listener.hearing(life.outbox):
        life.ticks(1)
        await life.tell.conclude(record(State.ACTIVE), "create", "end")
        life.ticks(2)
        await life.is_safe()
    monkeypatch.undo()

    life = Life(tmp_path)
    assert life.outbox.waiting == 3
    async with life.listener.hearing(life.outbox):
        assert await life.heard(3) == [1, "sev.instance.create.end", 2]
        await life.is_safe()
    assert Life(tmp_path).outbox.waiting == 0


async def test_same_at_every_attempt(tmp_path: Path) -> None:
    """A notification that the broker may have had already is sent again, after a restart, byte by byte the same."""
    life = Life(tmp_path)
    life.listener.holding.clear()
    async with life.listener.hearing(life.outbox):
        life.ticks(1)
        await life.listener.began.wait()
    (tried,) = life.outbox._waiting.values()
    assert list(Life(tmp_path).outbox._waiting.values()) == [tried]


async def test_taken_while_it_is_written_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A notification that the broker takes in the very moment in which it goes to the disk is not told again."""
    life = Life(tmp_path)
    life.listener.holding.clear()
    loop, writing, written = asyncio.get_running_loop(), asyncio.Event(), threading.Event()
    append = Spool._append

    def slowly(spool: Spool, content: bytes, *, sync: bool) -> None:
        append(spool, content, sync=sync)
        loop.call_soon_threadsafe(writing.set)
        assert written.wait(PATIENCE)

    monkeypatch.setattr(Spool, "_append", slowly)
    async with life.listener.hearing(life.outbox):
        life.ticks(1)
        await asyncio.wait_for(writing.wait(), PATIENCE)
        life.listener.holding.set()
        assert await life.heard(1) == [1]
        written.set()
        await life.is_safe()
    assert Life(tmp_path).outbox.waiting == 0


async def test_stop_sends_what_is_left(tmp_path: Path) -> None:
    """A stop in the middle of a publish loses neither that one nor those behind it."""
    life = Life(tmp_path)
    life.listener.holding.clear()
    async with life.listener.hearing(life.outbox):
        life.ticks(0, 1, 2)
        await life.listener.began.wait()
        life.listener.holding.set()
    assert await life.heard(3) == [0, 1, 2]


@pytest.mark.parametrize("hangs", [True, False])
async def test_stop_without_a_broker(tmp_path: Path, *, hangs: bool) -> None:
    """A stop does not wait for a broker that is away, says how many were not sent, and keeps them."""
    life = Life(tmp_path)
    if hangs:
        life.listener.holding.clear()
    else:
        life.listener.can_send = False
    with capture_logs() as logs:
        async with life.listener.hearing(life.outbox):
            life.ticks(0, 1, 2)
            await asyncio.wait_for(life.listener.began.wait(), PATIENCE)
    (line,) = (line for line in logs if line["event"] == "outbox.unsent")
    assert line["left"] == 3
    assert Life(tmp_path).outbox.waiting == 3


async def test_bounded_by_count(tmp_path: Path) -> None:
    """Beyond the bound the oldest progress goes first, then the oldest, each with a log and told to the metric."""
    life = Life(tmp_path, max_count=5)
    building = record(State.BUILDING)
    with capture_logs() as logs:
        life.ticks(0)
        life.tell.create(building, "progress", step="image")
        life.tell.create(building, "progress", step="disk")
        life.ticks(1, 2, 3, 4, 5)
    assert [letter.event_type.rsplit(".", 1)[1] for letter in life.dropped] == ["progress", "progress", "tick"]
    assert [line["event"] for line in logs] == ["outbox.dropped"] * 3
    async with life.listener.hearing(life.outbox):
        assert await life.heard(5) == [1, 2, 3, 4, 5]


async def test_bounded_by_size(tmp_path: Path) -> None:
    """However few, they take no more memory than configured; what is dropped leaves the disk too."""
    life = Life(tmp_path)
    life.listener.can_send = False
    async with life.listener.hearing(life.outbox):
        for number in range(8):
            life.tell.host("tick", {"number": number, "text": "x" * 300_000})
            await life.is_safe()
    life = Life(tmp_path)
    async with life.listener.hearing(life.outbox):
        assert await life.heard(3) == [5, 6, 7]
    assert life.listener.taken.empty()


@contextlib.contextmanager
def _full_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[asyncio.Event]:
    """A disk that takes nothing; the event is set as soon as that was tried."""
    tried = asyncio.Event()
    loop = asyncio.get_running_loop()

    def full(*_: object, **__: object) -> None:
        loop.call_soon_threadsafe(tried.set)
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(Spool, "_append", full)
        yield tried


async def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a full disk they wait in memory, with a log; they are written down once there is room."""
    life = Life(tmp_path)
    life.listener.can_send = False
    with capture_logs() as logs:
        async with life.listener.hearing(life.outbox):
            with _full_disk(monkeypatch) as tried:
                life.ticks(1, 2)
                await asyncio.wait_for(tried.wait(), PATIENCE)
            await life.is_safe()
    assert "outbox.keep.failed" in [line["event"] for line in logs]
    assert Life(tmp_path).outbox.waiting == 2


async def test_full_disk_when_all_has_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the broker took while the disk was full is struck off once there is room, and not told again."""
    life = Life(tmp_path)
    life.listener.can_send = False
    async with life.listener.hearing(life.outbox):
        life.ticks(1)
        await life.is_safe()
        with _full_disk(monkeypatch) as tried:
            life.listener.can_send = True
            assert await life.heard(1) == [1]
            await asyncio.wait_for(tried.wait(), PATIENCE)
        await life.is_safe()
    assert Life(tmp_path).outbox.waiting == 0


async def test_clock_is_set_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Notifications keep their order over a clock that goes back, in one life and from one to the next."""
    times = iter(range(10**18, 0, -1))
    monkeypatch.setattr("time.time_ns", lambda: next(times))
    life = Life(tmp_path)
    life.listener.can_send = False
    async with life.listener.hearing(life.outbox):
        life.ticks(1, 2)
        await life.tell.conclude(record(State.ACTIVE), "create", "end")
        await life.is_safe()

    life = Life(tmp_path)
    life.listener.can_send = False
    async with life.listener.hearing(life.outbox):
        life.ticks(3)
        await life.is_safe()
    life = Life(tmp_path)
    async with life.listener.hearing(life.outbox):
        assert await life.heard(4) == [1, 2, "sev.instance.create.end", 3]


async def test_owed_and_spooled(tmp_path: Path) -> None:
    """An end that only a record has comes before what the spool has of later."""
    life = Life(tmp_path)
    await life.tell.conclude(record(State.ACTIVE), "create", "end")
    life.ticks(1)
    spool = Spool(tmp_path / "notifications")
    spool.open()
    spool.commit([letter for letter in life.outbox._waiting.values() if letter.event_type.endswith("tick")], [])
    spool.close()

    life = Life(tmp_path)
    async with life.listener.hearing(life.outbox):
        assert await life.heard(2) == ["sev.instance.create.end", 1]


async def test_records_that_cannot_be_freed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record that a full disk keeps from being freed holds up no notification."""
    life = Life(tmp_path)

    def full(*_: object) -> None:
        raise JournalFailed("the record cannot be written: No space left on device")

    monkeypatch.setattr(RecordStore, "settle", full)
    with capture_logs() as logs:
        async with life.listener.hearing(life.outbox):
            for _ in range(2):
                await life.tell.conclude(record(State.ACTIVE), "create", "end")
                assert await life.heard(1) == ["sev.instance.create.end"]
                await life.is_safe()
    assert [line["event"] for line in logs].count("outbox.settle.failed") == 2


@pytest.mark.parametrize("can_send", [True, False])
async def test_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, can_send: bool) -> None:
    """Who has to know that a notification is safe waits until the broker or the disk has it, and no longer."""
    monkeypatch.setattr(module, "_SAFE_SECONDS", PATIENCE)
    life = Life(tmp_path)
    life.listener.can_send = can_send
    async with life.listener.hearing(life.outbox):
        with capture_logs() as logs:
            await life.tell.deleted(uuid4(), "req-1")
        assert "outbox.unsafe" not in [line["event"] for line in logs]
        if can_send:
            await life.heard(1)
            await life.is_safe()
    assert Life(tmp_path).outbox.waiting == (0 if can_send else 1)
