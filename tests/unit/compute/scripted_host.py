"""A host whose image, disk, libvirt, Placement and broker do as a test tells them; its instances are the real ones."""

import asyncio
import contextlib
import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast
from uuid import UUID

from sev_agent import schema
from sev_agent.compute.accounting import Accounting
from sev_agent.compute.announcements import Announcements
from sev_agent.compute.build import Builder
from sev_agent.compute.instance_locks import InstanceLocks
from sev_agent.compute.instances import Instances
from sev_agent.compute.operations import Operations
from sev_agent.compute.outbox import Outbox
from sev_agent.compute.power import Power
from sev_agent.compute.progress import Progress, Step
from sev_agent.compute.record import Record, State
from sev_agent.compute.record_store import RecordStore
from sev_agent.compute.rescheduling import Rescheduling
from sev_agent.config import BuildsSection, NotificationsSection
from sev_agent.messaging import envelope
from sev_agent.messaging.client import RpcClient
from sev_agent.messaging.envelope import Notification, Priority, RequestContext
from sev_agent.messaging.notifications import Notifier
from sev_agent.messaging.spool import Spool
from sev_agent.observe.metrics import Metrics
from sev_agent.sev.generation import Generation
from sev_agent.uninterrupted import in_thread
from tests.journal import opened

PATIENCE = 60.0
"""Seconds for what takes milliseconds on an idle machine."""


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
    """Takes what would go to the schedulers; ``faults`` are raised, one for each cast.

    ``sent`` is as it travels, ``asked`` as it is understood; ``versions`` are those in which it is said.
    """

    def __init__(self) -> None:
        self.asked: list[tuple[str, schema.RescheduleArguments]] = []
        self.sent: list[dict[str, Any]] = []
        self.versions: list[str] = []
        self.asked_at: list[datetime] = []
        self.faults: list[Exception] = []

    async def cast(
        self, method: str, arguments: dict[str, Any], *, queue: str, context: RequestContext, version: str
    ) -> None:
        if self.faults:
            raise self.faults.pop(0)
        assert (method, queue) == ("reschedule_instance", "sev_scheduler")
        # As it travels: in JSON.
        self.sent.append(json.loads(json.dumps(arguments)))
        self.versions.append(version)
        known = schema.parse(schema.RescheduleArguments, self.sent[-1])
        self.asked.append((context.request_id, known))
        self.asked_at.append(datetime.now(UTC))


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
    store = opened(directory)
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
