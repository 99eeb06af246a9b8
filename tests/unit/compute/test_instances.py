"""What a host does with the requests that it accepts, whenever they come."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast
from uuid import UUID, uuid4

import pytest

from sev_agent import schema
from sev_agent.compute.accounting import Accounting
from sev_agent.compute.announcements import Announcements
from sev_agent.compute.build import Builder
from sev_agent.compute.instance_locks import InstanceLocks
from sev_agent.compute.instances import InstanceExists, InstanceNotFound, Instances
from sev_agent.compute.operations import Operations
from sev_agent.compute.outbox import Outbox
from sev_agent.compute.power import Power
from sev_agent.compute.progress import Progress, Step
from sev_agent.compute.record import JournalFailed, Record, RecordStore, State, Superseded
from sev_agent.compute.rescheduling import Rescheduling
from sev_agent.config import BuildsSection, NotificationsSection
from sev_agent.errors import Conflict, InvalidRequest, SevAgentError, Unavailable
from sev_agent.hypervisor.errors import HypervisorUnavailable
from sev_agent.messaging import envelope
from sev_agent.messaging.client import RpcClient
from sev_agent.messaging.envelope import Notification, Priority, RequestContext
from sev_agent.messaging.notifications import Notifier
from sev_agent.messaging.spool import Letter, Spool
from sev_agent.observe.metrics import Metrics
from sev_agent.schema import Instance
from sev_agent.sev.generation import Generation
from sev_agent.uninterrupted import in_thread
from tests.requests import instance, record

PATIENCE = 10.0


class ScriptedBuilder:
    """Stands for image, disk, Placement and libvirt: what they make is in ``made``.

    Each build stops at ``begun`` until it is let ``go``; ``faults`` are raised, one for each build, ``undo_faults`` one
    for each undoing.
    """

    def __init__(self, store: RecordStore) -> None:
        self._store = store
        self.made: set[UUID] = set()
        self.begun: asyncio.Queue[tuple[UUID, bool]] = asyncio.Queue()
        self.go = asyncio.Event()
        self.faults: list[BaseException | None] = []
        self.undo_faults: list[BaseException | None] = []
        self.undone: asyncio.Queue[UUID] = asyncio.Queue()
        self.most_running = 0
        self._running: list[UUID] = []

    async def build(self, record: Record, progress: Progress, *, resumed: bool) -> Record:
        assert self.running_of(record.uuid) == 0, "two builds of one instance at once"
        self._running.append(record.uuid)
        self.most_running = max(self.most_running, len(self._running))
        try:
            with progress.step(Step.DISK):
                self.made.add(record.uuid)
                self.begun.put_nowait((record.uuid, resumed))
                await self.go.wait()
                if self.faults and (fault := self.faults.pop(0)) is not None:
                    raise fault
            active = record.with_(state=State.ACTIVE, generation=Generation.SEV)
            await in_thread(self._store.save, active)
        finally:
            self._running.remove(record.uuid)
        return active

    async def undo(self, record: Record, progress: Progress) -> None:
        assert self.running_of(record.uuid) == 0, "undone while it was being built"
        with progress.step(Step.UNDEFINE):
            self.undone.put_nowait(record.uuid)
            if self.undo_faults and (fault := self.undo_faults.pop(0)) is not None:
                raise fault
            self.made.discard(record.uuid)

    def running_of(self, uuid: UUID) -> int:
        return self._running.count(uuid)


class ScriptedPower:
    """Stands for libvirt and Placement: ``running`` are the guests that run, ``done`` is what was carried out.

    Each step stops at ``begun`` until it is let ``go``; ``faults`` are raised, one for each step that comes to its end.
    """

    def __init__(self) -> None:
        self.running: set[UUID] = set()
        self.done: list[str] = []
        self.begun: asyncio.Queue[str] = asyncio.Queue()
        self.go = asyncio.Event()
        self.faults: list[BaseException | None] = []
        self.most_at_once = 0
        self._at_work: list[UUID] = []

    async def start(self, record: Record) -> None:
        await self._do("start", record, runs=True)

    async def stop(self, record: Record) -> None:
        await self._do("stop", record, runs=False)

    async def halt(self, record: Record, *, hard: bool) -> None:
        await self._do("halt hard" if hard else "halt", record, runs=False)

    async def restart(self, record: Record) -> None:
        await self._do("restart", record, runs=True)

    async def runs(self, uuid: UUID) -> bool:
        return uuid in self.running

    async def _do(self, what: str, record: Record, *, runs: bool) -> None:
        assert record.uuid not in self._at_work, "two operations on one instance at once"
        self._at_work.append(record.uuid)
        self.most_at_once = max(self.most_at_once, len(self._at_work))
        try:
            self.begun.put_nowait(what)
            await self.go.wait()
            if self.faults and (fault := self.faults.pop(0)) is not None:
                raise fault
            self.done.append(what)
            (self.running.add if runs else self.running.discard)(record.uuid)
        finally:
            self._at_work.remove(record.uuid)


class Ear:
    """Takes what would go to the broker."""

    def __init__(self) -> None:
        self.heard: list[Notification] = []
        self._arrived = asyncio.Condition()

    can_send = True

    async def publish(self, body: bytes, priority: Priority) -> None:
        heard = envelope.decode_notification(envelope.unpack(body, max_bytes=len(body)))
        assert heard.priority is priority
        async with self._arrived:
            self.heard.append(heard)
            self._arrived.notify_all()

    def of(self, uuid: UUID) -> list[str]:
        return [
            heard.event_type.removeprefix("sev.instance.")
            for heard in self.heard
            if heard.payload["instance_uuid"] == str(uuid)
        ]

    async def until(self, uuid: UUID, event: str, *, times: int = 1) -> Notification:
        async with asyncio.timeout(PATIENCE), self._arrived:
            await self._arrived.wait_for(lambda: self.of(uuid).count(event) >= times)
        return next(
            heard
            for heard in reversed(self.heard)
            if heard.event_type == f"sev.instance.{event}" and heard.payload["instance_uuid"] == str(uuid)
        )


class Marks:
    """What accounting is told to look at."""

    def __init__(self) -> None:
        self.marked: list[UUID] = []

    def mark(self, uuid: UUID) -> None:
        self.marked.append(uuid)


class Schedulers:
    """Takes what would go to the schedulers; ``faults`` are raised, one for each cast."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, schema.RescheduleArguments]] = []
        self.faults: list[Exception] = []

    async def cast(self, method: str, arguments: dict[str, Any], *, queue: str, context: RequestContext) -> None:
        if self.faults:
            raise self.faults.pop(0)
        assert (method, queue) == ("reschedule_instance", "sev_scheduler")
        # As it travels: in JSON.
        known = schema.parse(schema.RescheduleArguments, json.loads(json.dumps(arguments)))
        self.asked.append((context.request_id, known))


@dataclass
class Host:
    """A host's instances at work, with all around them."""

    store: RecordStore
    builder: ScriptedBuilder
    power: ScriptedPower
    ear: Ear
    schedulers: Schedulers
    marks: Marks
    metrics: Metrics
    instances: Instances
    postponed: "asyncio.Queue[None]"
    tasks: "list[asyncio.Task[None]]" = field(default_factory=list)

    async def stop(self) -> None:
        for task in reversed(self.tasks):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        self.tasks.clear()

    def counted(self, outcome: str, code: str = "") -> float:
        labels = {"outcome": outcome, "code": code}
        return self.metrics.registry.get_sample_value("sev_agent_builds_total", labels) or 0

    async def begun(self) -> tuple[UUID, bool]:
        async with asyncio.timeout(PATIENCE):
            return await self.builder.begun.get()

    async def undone(self) -> UUID:
        async with asyncio.timeout(PATIENCE):
            return await self.builder.undone.get()

    def state(self, uuid: UUID) -> State | None:
        known = self.store.get(uuid)
        return None if known is None else known.state

    async def idle(self) -> None:
        """Nothing works on anything any more."""
        async with asyncio.timeout(PATIENCE):
            while self.instances._tasks:
                await asyncio.wait(list(self.instances._tasks.values()))
                await asyncio.sleep(0)


def start(directory: Path, *, max_concurrent: int = 10, max_power_changes: int = 10, stop_timeout: float = 5) -> Host:
    """The daemon's part, as it starts over what is in ``directory``."""
    store = RecordStore(directory)
    store.open()
    builder, power, ear, marks, metrics = ScriptedBuilder(store), ScriptedPower(), Ear(), Marks(), Metrics()
    schedulers = Schedulers()
    rescheduling = Rescheduling(cast("RpcClient", schedulers), "node1")
    postponed: asyncio.Queue[None] = asyncio.Queue()
    outbox = Outbox(cast("Notifier", ear), Spool(directory.parent / "notifications"), store, NotificationsSection())
    outbox.open()
    locks = InstanceLocks()
    announcements = Announcements(outbox, store, "node1")
    operations = Operations(
        store=store,
        locks=locks,
        builder=cast("Builder", builder),
        power=cast("Power", power),
        rescheduling=rescheduling,
        announcements=announcements,
        metrics=metrics,
        settings=BuildsSection(max_concurrent=max_concurrent, max_power_changes=max_power_changes),
        on_postponed=lambda: postponed.put_nowait(None),
    )
    instances = Instances(
        host="node1",
        store=store,
        locks=locks,
        operations=operations,
        rescheduling=rescheduling,
        power=cast("Power", power),
        accounting=cast("Accounting", marks),
        announcements=announcements,
        metrics=metrics,
        stop_timeout=stop_timeout,
    )
    host = Host(store, builder, power, ear, schedulers, marks, metrics, instances, postponed)
    host.tasks = [asyncio.create_task(outbox.run()), asyncio.create_task(instances.run())]
    return host


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    running = start(tmp_path / "instances")
    yield running
    running.builder.go.set()
    running.power.go.set()
    await running.stop()


async def test_build(host: Host) -> None:
    """A request is in the journal when it is accepted, in flight while it is worked on, and ends as active."""
    asked = instance()

    accepted = await host.instances.build(asked, "req-1")

    assert accepted.state is State.BUILDING
    assert b'"building"' in host.store.files(asked.uuid).record.read_bytes()
    assert host.instances.in_flight(asked.uuid)
    assert await host.begun() == (asked.uuid, False)
    assert host.instances.view(asked.uuid)["steps"] == ["disk"]
    host.builder.go.set()
    end = await host.ear.until(asked.uuid, "create.end")
    await host.idle()
    assert end.payload["state"] == "active"
    assert end.context.request_id == "req-1"
    assert host.ear.of(asked.uuid) == ["create.start", "create.progress", "create.end"]
    assert host.state(asked.uuid) is State.ACTIVE
    assert not host.instances.in_flight(asked.uuid)
    assert host.marks.marked == [asked.uuid]
    assert host.counted("active") == 1
    assert host.instances.view(asked.uuid)["steps"] == []


async def test_failed_build(host: Host) -> None:
    """A build that fails is undone, and then told of with the step, the code and the remedy."""
    asked = instance()
    host.builder.go.set()
    host.builder.faults = [InvalidRequest("is wrong", field="instance.image", remedy="use another")]

    await host.instances.build(asked, "req-1")
    error = await host.ear.until(asked.uuid, "create.error")
    await host.idle()

    fault = cast("dict[str, Any]", error.payload["fault"])
    assert (fault["code"], fault["step"], fault["remedy"]) == ("request.invalid", "disk", "use another")
    assert error.priority == "error"
    assert host.state(asked.uuid) is State.ERROR
    assert not host.builder.made
    assert host.counted("error", "request.invalid") == 1
    assert not host.instances.in_flight(asked.uuid)


async def test_fault_of_ours(host: Host) -> None:
    """An error that nobody foresaw ends the build as any other, and the daemon goes on."""
    asked, next_one = instance(), instance()
    host.builder.go.set()
    host.builder.faults = [ZeroDivisionError("oops")]

    await host.instances.build(asked, "req-1")
    error = await host.ear.until(asked.uuid, "create.error")
    await host.instances.build(next_one, "req-2")
    await host.ear.until(next_one.uuid, "create.end")

    fault = cast("dict[str, Any]", error.payload["fault"])
    assert (fault["code"], fault["message"]) == ("internal", "ZeroDivisionError: oops")


async def test_libvirt_away(host: Host) -> None:
    """A build that libvirt's absence stops is neither failed nor undone: it goes on with the next resume."""
    asked = instance()
    host.builder.go.set()
    host.builder.faults = [HypervisorUnavailable("gone")]

    await host.instances.build(asked, "req-1")
    await host.begun()
    await host.idle()

    assert host.state(asked.uuid) is State.BUILDING
    assert host.instances.in_flight(asked.uuid)
    assert host.builder.undone.empty()
    assert host.postponed.qsize() == 1
    host.instances.resume()
    assert await host.begun() == (asked.uuid, True)
    await host.ear.until(asked.uuid, "create.end")


async def test_undoing_that_waits(host: Host) -> None:
    """A failed build whose undoing is stopped stays failing, and is undone by the next resume. It is told of once."""
    asked = instance()
    host.builder.go.set()
    host.builder.faults = [SevAgentError("oops")]
    host.builder.undo_faults = [Unavailable("Placement is away")]

    await host.instances.build(asked, "req-1")
    await host.undone()
    await host.idle()

    assert host.state(asked.uuid) is State.FAILING
    assert host.instances.in_flight(asked.uuid)
    assert host.instances.view(asked.uuid)["fault"]["message"] == "oops"
    assert "create.error" not in host.ear.of(asked.uuid)
    host.instances.resume()
    await host.ear.until(asked.uuid, "create.error")
    await host.idle()
    assert host.state(asked.uuid) is State.ERROR
    assert host.ear.of(asked.uuid).count("create.error") == 1
    assert not host.builder.made


@pytest.mark.parametrize("fault", [Conflict("again and again"), OSError(5, "Input/output error")])
async def test_undoing_that_is_refused(tmp_path: Path, fault: Exception) -> None:
    """Where the undoing is refused the failure is told all the same, once over restarts; then its end is."""
    asked = instance()
    host = start(tmp_path / "instances")
    host.builder.go.set()
    host.builder.faults = [SevAgentError("oops")]
    host.builder.undo_faults = [Unavailable("Placement is away"), fault, fault]

    await host.instances.build(asked, "req-1")
    await host.idle()
    assert "create.error" not in host.ear.of(asked.uuid)
    host.instances.resume()
    error = await host.ear.until(asked.uuid, "create.error")
    await host.idle()
    host.instances.resume()
    await host.idle()
    await host.stop()

    told = cast("dict[str, Any]", error.payload["fault"])
    assert (error.payload["state"], told["message"], error.context.request_id) == ("failing", "oops", "req-1")
    assert host.state(asked.uuid) is State.FAILING
    assert host.instances.in_flight(asked.uuid)
    assert host.builder.made
    assert host.ear.of(asked.uuid).count("create.error") == 1

    again = start(tmp_path / "instances")
    again.builder.undo_faults = [fault]
    again.instances.resume()
    await again.idle()
    assert again.state(asked.uuid) is State.FAILING
    again.instances.resume()
    end = await again.ear.until(asked.uuid, "create.error")
    await again.idle()
    await again.stop()

    assert (end.payload["state"], again.state(asked.uuid)) == ("error", State.ERROR)
    assert again.ear.of(asked.uuid).count("create.error") == 1


async def test_full_disk_during_a_build(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk so full that even the failure cannot be written down: the build is undone all the same."""
    asked = instance()
    await host.instances.build(asked, "req-1")
    await host.begun()
    save, attempts = host.store.save, []

    def full_once(_: RecordStore, late: Record, *, owing: Letter | None = None) -> None:
        attempts.append(late.state)
        if late.state is State.FAILING:
            raise JournalFailed("no space")
        save(late, owing=owing)

    monkeypatch.setattr(RecordStore, "save", full_once)
    host.builder.faults = [OSError(28, "No space left on device")]
    host.builder.go.set()

    error = await host.ear.until(asked.uuid, "create.error")
    await host.idle()

    assert cast("dict[str, Any]", error.payload["fault"])["code"] == "disk.full"
    assert attempts == [State.FAILING, State.ERROR]
    assert not host.builder.made


async def test_request_that_cannot_be_written_down(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a journal nothing is accepted and nothing begins."""

    def full(_: RecordStore, __: Record) -> None:
        raise JournalFailed("no space")

    monkeypatch.setattr(RecordStore, "save", full)

    with pytest.raises(JournalFailed):
        await host.instances.build(instance(), "req-1")

    assert not host.instances.views()
    assert host.builder.begun.empty()


@pytest.mark.parametrize("when", ["building", "active", "error"])
async def test_same_request_again(host: Host, when: str) -> None:
    """A request that comes again is a success that begins nothing."""
    asked = instance()
    host.builder.faults = [SevAgentError("oops")] if when == "error" else []
    await host.instances.build(asked, "req-1")
    await host.begun()
    if when != "building":
        host.builder.go.set()
        await host.ear.until(asked.uuid, "create.end" if when == "active" else "create.error")
        await host.idle()

    again = await host.instances.build(asked, "req-1")

    assert again.state == when
    assert host.builder.begun.empty()
    assert host.ear.of(asked.uuid).count("create.start") == 1


async def test_other_content(host: Host) -> None:
    """Another request with the same UUID is refused, and the first goes on."""
    asked = instance()
    await host.instances.build(asked, "req-1")

    with pytest.raises(InstanceExists, match="other content") as caught:
        await host.instances.build(instance(asked.uuid, name="other"), "req-2")

    assert caught.value.field == "instance.uuid"
    host.builder.go.set()
    await host.ear.until(asked.uuid, "create.end")


async def test_same_request_twice_at_once(host: Host) -> None:
    """Two deliveries of one request at the same time begin one build."""
    asked = instance()

    await asyncio.gather(*(host.instances.build(asked, "req-1") for _ in range(5)))
    host.builder.go.set()
    await host.ear.until(asked.uuid, "create.end")
    await host.idle()

    assert host.ear.of(asked.uuid).count("create.start") == 1


async def test_resume_during_acceptance(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """A resume that sees the journal before the acceptance goes on begins the build, and no second one follows."""
    asked = instance()
    save, loop = RecordStore.save, asyncio.get_running_loop()

    def save_and_resume(store: RecordStore, late: Record, *, owing: Letter | None = None) -> None:
        save(store, late, owing=owing)
        if late.state is State.BUILDING:
            asyncio.run_coroutine_threadsafe(_call(host.instances.resume), loop).result(PATIENCE)

    monkeypatch.setattr(RecordStore, "save", save_and_resume)
    await host.instances.build(asked, "req-1")
    await host.begun()
    host.builder.go.set()
    await host.ear.until(asked.uuid, "create.end")
    await host.idle()

    assert host.ear.of(asked.uuid).count("create.start") == 1


async def _call(function: Any) -> None:
    function()


async def test_acceptance_that_is_cancelled(host: Host) -> None:
    """A handler that is cancelled while it writes the journal leaves a build that goes on, not one that waits."""
    asked = instance()
    handling = asyncio.create_task(host.instances.build(asked, "req-1"))
    await asyncio.sleep(0)
    handling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await handling

    assert await host.begun() == (asked.uuid, False)


async def test_bounded_builds(tmp_path: Path) -> None:
    """No more builds than configured work at once; the others wait, and all end."""
    host = start(tmp_path / "instances", max_concurrent=3)
    asked = [instance() for _ in range(8)]
    for one in asked:
        await host.instances.build(one, "req")
    for _ in range(3):
        await host.begun()
    host.builder.go.set()

    for one in asked:
        await host.ear.until(one.uuid, "create.end")

    assert host.builder.most_running == 3
    await host.stop()


async def test_terminate(host: Host) -> None:
    """An instance is deleted with all that was made for it, and then unknown."""
    asked = instance(user_data="c2VjcmV0")
    host.builder.go.set()
    await host.instances.build(asked, "req-1")
    await host.ear.until(asked.uuid, "create.end")

    await host.instances.terminate(asked.uuid, "req-2")
    assert host.state(asked.uuid) is State.DELETING
    end = await host.ear.until(asked.uuid, "delete.end")
    await host.idle()

    assert end.context.request_id == "req-2"
    assert not host.builder.made
    assert host.ear.of(asked.uuid)[-3:] == ["delete.start", "delete.progress", "delete.end"]
    with pytest.raises(InstanceNotFound):
        host.instances.view(asked.uuid)
    assert host.instances.views() == []
    assert list(host.instances.by_state()) == []
    assert b"c2VjcmV0" not in host.store.files(asked.uuid).record.read_bytes()


async def test_terminate_what_is_unknown(host: Host) -> None:
    """What is gone is gone: a success, told as one."""
    uuid = uuid4()

    await host.instances.terminate(uuid, "req-1")

    assert (await host.ear.until(uuid, "delete.end")).payload["state"] == "deleted"


async def test_terminate_again(host: Host) -> None:
    """A deletion that comes again is a success, during the first and after it."""
    asked = instance()
    host.builder.go.set()
    await host.instances.build(asked, "req-1")
    await host.ear.until(asked.uuid, "create.end")

    await asyncio.gather(*(host.instances.terminate(asked.uuid, "req-2") for _ in range(3)))
    await host.ear.until(asked.uuid, "delete.end")
    await host.idle()
    await host.instances.terminate(asked.uuid, "req-3")

    assert host.ear.of(asked.uuid).count("delete.start") == 1
    assert host.builder.undone.qsize() == 1
    assert host.state(asked.uuid) is State.DELETED


@pytest.mark.parametrize("state", [State.DELETING, State.DELETED])
async def test_build_of_what_is_deleted(host: Host, state: State) -> None:
    """A build that is delivered again after its deletion was accepted is refused: no guest rises from the dead."""
    asked = instance()
    host.builder.go.set()
    await host.instances.build(asked, "req-1")
    await host.ear.until(asked.uuid, "create.end")
    await host.idle()
    host.builder.undo_faults = [Unavailable("away")] if state is State.DELETING else []
    await host.instances.terminate(asked.uuid, "req-2")
    await host.undone()
    await host.idle()
    assert host.state(asked.uuid) is state

    with pytest.raises(InstanceExists, match=str(state)):
        await host.instances.build(asked, "req-1")


@pytest.mark.parametrize("turns", range(8))
async def test_terminate_at_any_moment_of_a_build(host: Host, turns: int) -> None:
    """A deletion, whenever it comes, ends the build first and then removes everything; the build is no failure."""
    asked = instance()
    await host.instances.build(asked, "req-1")
    if turns == 7:
        await host.begun()
    for _ in range(turns):
        await asyncio.sleep(0)
    if turns % 2:
        host.builder.go.set()

    await host.instances.terminate(asked.uuid, "req-2")
    await host.ear.until(asked.uuid, "delete.end")
    await host.idle()

    assert host.state(asked.uuid) is State.DELETED
    assert not host.builder.made
    assert "create.error" not in host.ear.of(asked.uuid)
    assert host.counted("error", "instance.superseded") == 0
    assert not host.instances.in_flight(asked.uuid)


async def test_build_that_comes_too_late(host: Host) -> None:
    """A build that finds its deletion in the journal is no failure: the deletion does what is left."""
    asked = instance()
    host.builder.go.set()
    host.builder.faults = [Superseded("being deleted")]

    await host.instances.build(asked, "req-1")
    await host.begun()
    await host.idle()

    assert host.builder.undone.empty()
    assert "create.error" not in host.ear.of(asked.uuid)
    assert host.state(asked.uuid) is State.BUILDING


async def test_terminate_while_a_failed_build_is_undone(host: Host) -> None:
    """A deletion takes over from the undoing of a failed build."""
    asked = instance()
    host.builder.go.set()
    host.builder.faults = [SevAgentError("oops")]
    host.builder.undo_faults = [Unavailable("away")]
    await host.instances.build(asked, "req-1")
    await host.undone()
    await host.idle()

    await host.instances.terminate(asked.uuid, "req-2")
    await host.ear.until(asked.uuid, "delete.end")
    await host.idle()

    assert host.state(asked.uuid) is State.DELETED
    assert not host.builder.made


async def test_terminate_a_build_that_waits(tmp_path: Path) -> None:
    """A build that waits for its turn is deleted without ever beginning."""
    host = start(tmp_path / "instances", max_concurrent=1)
    first, waiting = instance(), instance()
    await host.instances.build(first, "req-1")
    await host.begun()
    await host.instances.build(waiting, "req-2")

    await host.instances.terminate(waiting.uuid, "req-3")
    await host.ear.until(waiting.uuid, "delete.end")

    assert host.builder.begun.empty()
    host.builder.go.set()
    await host.ear.until(first.uuid, "create.end")
    await host.stop()


async def test_deletion_that_is_stopped(host: Host) -> None:
    """A deletion that libvirt's or Placement's absence stops is ended by the next resume."""
    asked = instance()
    host.builder.go.set()
    await host.instances.build(asked, "req-1")
    await host.ear.until(asked.uuid, "create.end")
    await host.idle()
    host.builder.undo_faults = [HypervisorUnavailable("gone"), Unavailable("away"), OSError(5, "Input/output error")]

    await host.instances.terminate(asked.uuid, "req-2")
    for _ in range(3):
        await host.undone()
        await host.idle()
        assert host.state(asked.uuid) is State.DELETING
        host.instances.resume()

    await host.ear.until(asked.uuid, "delete.end")
    assert not host.builder.made


@pytest.mark.parametrize(
    ("state", "then"),
    [(State.BUILDING, State.ACTIVE), (State.FAILING, State.ERROR), (State.DELETING, State.DELETED)],
)
async def test_restart(tmp_path: Path, state: State, then: State) -> None:
    """What was unfinished when the daemon died is finished after its start."""
    before = RecordStore(tmp_path / "instances")
    before.open()
    fault = {"fault": {"code": "x", "message": "y", "step": "disk"}} if state is State.FAILING else {}
    unfinished = Record.model_validate(record(state).model_dump() | fault)
    before.save(unfinished)
    host = start(tmp_path / "instances")
    host.builder.go.set()

    assert host.instances.in_flight(unfinished.uuid)
    host.instances.resume()
    host.instances.resume()
    await host.idle()

    assert host.state(unfinished.uuid) is then
    await host.stop()


@pytest.mark.parametrize("state", [State.ACTIVE, State.STOPPED, State.ERROR, State.DELETED])
async def test_restart_with_what_is_finished(tmp_path: Path, state: State) -> None:
    """What was finished is left alone by a resume."""
    before = RecordStore(tmp_path / "instances")
    before.open()
    finished = record(state)
    before.save(finished)
    host = start(tmp_path / "instances")

    host.instances.resume()
    await host.idle()

    assert not host.instances.in_flight(finished.uuid)
    assert host.store.get(finished.uuid) == finished
    await host.stop()


async def test_stop_waits(host: Host) -> None:
    """A stop lets what is under way end."""
    asked = instance()
    await host.instances.build(asked, "req-1")
    await host.begun()

    stopping = asyncio.create_task(host.stop())
    await asyncio.sleep(0.05)
    assert not stopping.done()
    host.builder.go.set()
    await stopping

    assert host.state(asked.uuid) is State.ACTIVE
    assert "create.end" in host.ear.of(asked.uuid)


async def test_stop_is_bounded(tmp_path: Path) -> None:
    """What does not end in time is left as it is, and resumable; nothing new begins."""
    host = start(tmp_path / "instances", stop_timeout=0.1)
    asked = instance()
    await host.instances.build(asked, "req-1")
    await host.begun()

    async with asyncio.timeout(PATIENCE):
        await host.stop()
    host.instances.resume()
    await asyncio.sleep(0)

    assert host.state(asked.uuid) is State.BUILDING
    assert host.builder.undone.empty()
    assert host.builder.begun.empty()
    again = start(tmp_path / "instances")
    again.builder.go.set()
    again.instances.resume()
    await again.ear.until(asked.uuid, "create.end")
    await again.stop()


@pytest.mark.parametrize("runs", [True, False])
@pytest.mark.parametrize("state", list(State))
async def test_observed(host: Host, state: State, *, runs: bool) -> None:
    """What libvirt says changes the state of an instance that stands still, and of no other."""
    known = record(state)
    host.store.save(known)

    await host.instances.observe(known.uuid, runs=runs)
    await host.instances.observe(uuid4(), runs=runs)

    stands = state in {State.ACTIVE, State.STOPPED}
    assert host.state(known.uuid) is ((State.ACTIVE if runs else State.STOPPED) if stands else state)


async def test_views(host: Host) -> None:
    """All instances are listed, the oldest first, without those that are gone."""
    known = [record(state) for state in (State.ACTIVE, State.ERROR, State.DELETED, State.STOPPED)]
    for one in known:
        host.store.save(one)

    assert [view["uuid"] for view in host.instances.views()] == [
        str(one.uuid) for one in known if one.state is not State.DELETED
    ]
    assert sorted(host.instances.by_state()) == [(("active",), 1.0), (("error",), 1.0), (("stopped",), 1.0)]
    assert isinstance(known[0].instance, Instance)


async def test_nothing_grows(host: Host) -> None:
    """After many builds and deletions nothing is kept in memory but the records."""
    host.builder.go.set()
    for _ in range(20):
        asked = instance()
        await host.instances.build(asked, "req")
        await host.ear.until(asked.uuid, "create.end")
        await host.instances.terminate(asked.uuid, "req")
        await host.ear.until(asked.uuid, "delete.end")
    await host.idle()

    assert not host.instances._tasks
    assert not host.instances._operations._progress
    assert not host.instances._operations._waiting
    assert len(host.instances._locks) == 0


async def test_deletion_that_is_refused(host: Host) -> None:
    """A deletion that does not get on is tried again; each new reason is told once, and stands in the record."""
    asked = instance()
    host.builder.go.set()
    await host.instances.build(asked, "req-1")
    await host.ear.until(asked.uuid, "create.end")
    host.builder.undo_faults = [Conflict("it is busy"), Conflict("it is busy"), Conflict("it is broken"), None]

    await host.instances.terminate(asked.uuid, "req-2")
    for reason in ("it is busy", "it is busy", "it is broken"):
        await host.idle()
        view = host.instances.view(asked.uuid)
        assert (view["state"], view["fault"]["message"], view["fault"]["step"]) == ("deleting", reason, "undefine")
        assert view["waiting_for"]["message"] == reason
        host.instances.resume()
    end = await host.ear.until(asked.uuid, "delete.end")
    await host.idle()

    deleting = [event for event in host.ear.of(asked.uuid) if event.startswith("delete.")]
    assert deleting == ["delete.start", "delete.error", "delete.error", "delete.progress", "delete.end"]
    assert end.payload["fault"] is None
    assert host.postponed.empty()
    assert host.metrics.registry.get_sample_value("sev_agent_deletions_total", {"outcome": "error"}) == 2


async def test_deletion_that_waits(host: Host) -> None:
    """While libvirt or Placement is away a deletion is no error: it waits, and shows for what."""
    asked = instance()
    host.builder.go.set()
    await host.instances.build(asked, "req-1")
    await host.ear.until(asked.uuid, "create.end")
    host.builder.undo_faults = [Unavailable("Placement is away")]

    await host.instances.terminate(asked.uuid, "req-2")
    await host.idle()

    view = host.instances.view(asked.uuid)
    assert (view["fault"], view["waiting_for"]["message"]) == (None, "Placement is away")
    assert host.postponed.qsize() == 1
    host.instances.resume()
    await host.ear.until(asked.uuid, "delete.end")
    deleting = [event for event in host.ear.of(asked.uuid) if event.startswith("delete.")]
    assert deleting == ["delete.start", "delete.progress", "delete.end"]
