"""Which guests are started again after a restart of the host, in which order, and when."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import pytest

from sev_agent.compute import host_boot
from sev_agent.compute.host_boot import HostBoot, Start
from sev_agent.compute.record import State
from sev_agent.compute.record_store import JournalFailed
from sev_agent.errors import Conflict, SevAgentError, Unavailable
from tests.journal import opened
from tests.requests import instance, record

PATIENCE = 60.0
EPOCH = datetime(2026, 1, 1, tzinfo=UTC)


def real_boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


class Host:
    """A host whose power can fail: what is below ``directory`` stays, and every boot has another identifier."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._boot_id = directory / "platform" / "proc/sys/kernel/random/boot_id"
        self._boot_id.parent.mkdir(parents=True)
        self.boots = 0
        self.store = opened(directory / "instances")
        self.started: asyncio.Queue[UUID] = asyncio.Queue()
        self.faults: list[SevAgentError] = []
        self.last_requests: dict[UUID, str] = {}
        self.boot()

    def boot(self) -> None:
        self.boots += 1
        self._boot_id.write_text(f"boot-{self.boots}\n")

    def has(self, state: State, *, age: int = 0, auto_start: bool = True) -> UUID:
        """An instance that is ``age`` days old."""
        asked = instance(auto_start=auto_start)
        known = record(state, instance=asked, created_at=EPOCH - timedelta(days=age))
        self.store.save(known)
        return known.uuid

    def observe(self, uuid: UUID, state: State) -> None:
        known = self.store.get(uuid)
        assert known is not None
        self.store.save(known.with_(state=state))

    def daemon(self, start: Start | None = None) -> HostBoot:
        made = HostBoot(
            platform_root=self.directory / "platform",
            state_dir=self.directory,
            store=self.store,
            start=start or self._start,
        )
        made.prepare()
        return made

    @asynccontextmanager
    async def running(self, daemon: HostBoot) -> AsyncIterator[None]:
        task = asyncio.create_task(daemon.run())
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def starts(self, count: int) -> list[UUID]:
        async with asyncio.timeout(PATIENCE):
            return [await self.started.get() for _ in range(count)]

    async def _start(self, uuid: UUID, last_request: str) -> None:
        self.last_requests[uuid] = last_request
        self.started.put_nowait(uuid)
        if self.faults:
            raise self.faults.pop(0)
        self.observe(uuid, State.ACTIVE)


@pytest.fixture
async def host(tmp_path: Path) -> Host:
    host = Host(tmp_path)
    host.daemon()
    return host


async def started_by(host: Host, daemon: HostBoot, count: int) -> list[UUID]:
    """The guests that ``daemon`` starts in its first moments, of which ``count`` are waited for."""
    async with host.running(daemon):
        daemon.on_registered()
        found = await host.starts(count)
        await asyncio.sleep(0.02)
    return found + [host.started.get_nowait() for _ in range(host.started.qsize())]


async def test_oldest_first(host: Host) -> None:
    """Guests that ran and are marked so are started one after the other, the oldest first; no others are."""
    young, old = host.has(State.ACTIVE, age=1), host.has(State.ACTIVE, age=3)
    middle = host.has(State.ACTIVE, age=2)
    host.has(State.ACTIVE, age=9, auto_start=False)
    host.has(State.STOPPED, age=9)
    host.has(State.ERROR, age=9)
    host.boot()

    assert await started_by(host, host.daemon(), 3) == [old, middle, young]


async def test_restart_of_the_daemon_alone(host: Host) -> None:
    """Without a restart of the host nothing is started: who switched a guest off meant it."""
    host.observe(host.has(State.ACTIVE), State.STOPPED)
    host.has(State.ACTIVE)

    assert await started_by(host, host.daemon(), 0) == []


async def test_first_start_of_all(tmp_path: Path) -> None:
    """A daemon that has never seen a boot of this host starts nothing."""
    host = Host(tmp_path)
    host.has(State.ACTIVE)

    assert await started_by(host, host.daemon(), 0) == []


async def test_waits_for_placement(host: Host) -> None:
    """Nothing is started before Placement has been told that the old guests are gone."""
    uuid = host.has(State.ACTIVE)
    host.boot()
    daemon = host.daemon()

    async with host.running(daemon):
        await asyncio.sleep(0.02)
        assert host.started.empty()
        daemon.on_registered()
        assert await host.starts(1) == [uuid]


async def test_one_at_a_time(host: Host) -> None:
    """The next guest is not started before the one before it has, or has failed: the older one gets the slot."""
    old = host.has(State.ACTIVE, age=2)
    host.has(State.ACTIVE, age=1)
    host.boot()
    may_end = asyncio.Event()

    async def start(uuid: UUID, _: str) -> None:
        host.started.put_nowait(uuid)
        await may_end.wait()

    daemon = host.daemon(start)
    async with host.running(daemon):
        daemon.on_registered()
        assert await host.starts(1) == [old]
        await asyncio.sleep(0.02)
        assert host.started.empty()
        may_end.set()
        await host.starts(1)


async def test_guest_that_is_refused(host: Host) -> None:
    """A guest that may not start keeps no other from it, and is not tried again."""
    refused, other = host.has(State.ACTIVE, age=2), host.has(State.ACTIVE, age=1)
    host.boot()
    host.faults = [Conflict("no")]

    assert await started_by(host, host.daemon(), 2) == [refused, other]
    assert await started_by(host, host.daemon(), 0) == []


async def test_libvirt_away(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest that could not be asked for is tried again, before those that are younger."""
    monkeypatch.setattr(host_boot, "_RETRY_SECONDS", 0.01)
    old, young = host.has(State.ACTIVE, age=2), host.has(State.ACTIVE, age=1)
    host.boot()
    host.faults = [Unavailable("gone"), Unavailable("gone")]

    assert await started_by(host, host.daemon(), 4) == [old, old, old, young]


async def test_journal_that_is_full(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest whose start cannot be written down for now is not given up: it is tried until the disk takes it."""
    monkeypatch.setattr(host_boot, "_RETRY_SECONDS", 0.01)
    old, young = host.has(State.ACTIVE, age=2), host.has(State.ACTIVE, age=1)
    host.boot()
    host.faults = [JournalFailed("no space")]

    assert await started_by(host, host.daemon(), 3) == [old, old, young]


async def test_daemon_that_dies_in_between(host: Host) -> None:
    """Guests that were still to be started are so by the next daemon, also though they are known as stopped by then."""
    first, second = host.has(State.ACTIVE, age=2), host.has(State.ACTIVE, age=1)
    host.boot()
    stuck = asyncio.Event()

    async def start(uuid: UUID, _: str) -> None:
        host.started.put_nowait(uuid)
        if uuid == second:
            await stuck.wait()

    daemon = host.daemon(start)
    async with host.running(daemon):
        daemon.on_registered()
        assert await host.starts(2) == [first, second]
    host.observe(second, State.STOPPED)

    assert await started_by(host, host.daemon(), 1) == [second]


async def test_host_that_dies_in_between(host: Host) -> None:
    """After a second loss of power, those that the first kept waiting are started with those that ran meanwhile."""
    first, second = host.has(State.ACTIVE, age=2), host.has(State.ACTIVE, age=1)
    host.boot()
    host.daemon()
    host.observe(first, State.ACTIVE)
    host.observe(second, State.STOPPED)
    host.boot()

    assert await started_by(host, host.daemon(), 2) == [first, second]


async def test_list_that_cannot_be_read(host: Host, tmp_path: Path) -> None:
    """What was left of the list is no reason not to start; then it is as at the first start of all."""
    host.has(State.ACTIVE)
    (tmp_path / "host-boot.json").write_text("{")
    host.boot()

    assert await started_by(host, host.daemon(), 0) == []


async def test_full_disk(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that takes no list keeps neither the daemon from starting nor the guests."""

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    guests = [host.has(State.ACTIVE, age=age) for age in (2, 1)]
    host.boot()
    monkeypatch.setattr(host_boot, "write_durably", full)

    assert await started_by(host, host.daemon(), 2) == guests


async def test_host_without_a_boot_id(tmp_path: Path) -> None:
    """Below a root that shows no identifier, the kernel's own counts."""
    host = Host(tmp_path)
    (tmp_path / "platform/proc/sys/kernel/random/boot_id").unlink()

    host.daemon()

    assert real_boot_id() in (tmp_path / "host-boot.json").read_text()
    host.has(State.ACTIVE)
    assert await started_by(host, host.daemon(), 0) == []


async def test_what_was_asked_before_the_boot(host: Host) -> None:
    """Who starts a guest is told the last request to it from before the boot, after a restart of the daemon as well."""
    asked, unasked = host.has(State.ACTIVE, age=2), host.has(State.ACTIVE, age=1)
    known = host.store.get(asked)
    assert known is not None
    host.store.save(known.with_(handled=("stop req-1", "start req-2")))
    host.boot()
    host.daemon()
    host.store.save(known.with_(state=State.STOPPED, handled=("stop req-1", "start req-2", "stop req-3")))

    assert await started_by(host, host.daemon(), 2) == [asked, unasked]

    assert host.last_requests == {asked: "start req-2", unasked: ""}


async def test_stopped_between_two_restarts_of_the_host(host: Host) -> None:
    """A guest whose user stopped it before its turn is left alone, also where the host went down again before that."""
    stopped, waiting = host.has(State.ACTIVE), host.has(State.ACTIVE)
    host.boot()
    host.daemon()
    for uuid, handled in ((stopped, ("stop req-1",)), (waiting, ())):
        known = host.store.get(uuid)
        assert known is not None
        host.store.save(known.with_(state=State.STOPPED, handled=handled))
    host.boot()

    assert await started_by(host, host.daemon(), 1) == [waiting]
