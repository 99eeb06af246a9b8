"""The instances of a host: requests accepted, each into the journal and into a task that carries it out."""

import asyncio
import time
from collections import Counter
from collections.abc import Coroutine
from typing import Any
from uuid import UUID, uuid4

import structlog

from sev_agent.compute.accounting import Accounting
from sev_agent.compute.announcements import Announcements
from sev_agent.compute.instance_locks import InstanceLocks
from sev_agent.compute.operations import Operations
from sev_agent.compute.power import Power
from sev_agent.compute.power_change import POWER_CHANGES, Verdict, judge, refuse_if_stopped_since
from sev_agent.compute.progress import Step
from sev_agent.compute.record import Fault, Record, State
from sev_agent.compute.record_store import RecordStore
from sev_agent.compute.rescheduling import Rescheduling
from sev_agent.crash_points import CrashPoint, reached
from sev_agent.errors import Conflict, NotFound
from sev_agent.observe.metrics import Labelled, Metrics
from sev_agent.schema import Instance, Scheduling
from sev_agent.uninterrupted import in_thread, uninterrupted

log = structlog.stdlib.get_logger(__name__)


class InstanceExists(Conflict):
    """Another instance has this UUID."""

    code = "instance.exists"


class InstanceNotFound(NotFound):
    """The host has no such instance."""

    code = "instance.not_found"


class Instances:
    """The one place where an instance's state changes.

    A request is journaled by ``build``, ``terminate`` or ``change_power``; then it is this object's to finish, in a
    task of its own, over restarts if need be. What ``operations`` could not end waits for the next ``resume``. A stop
    gives them ``stop_timeout`` seconds.
    """

    def __init__(
        self,
        *,
        host: str,
        store: RecordStore,
        locks: InstanceLocks,
        operations: Operations,
        rescheduling: Rescheduling,
        power: Power,
        accounting: Accounting,
        announcements: Announcements,
        metrics: Metrics,
        stop_timeout: float,
    ) -> None:
        self._host = host
        self._store = store
        self._locks = locks
        self._operations = operations
        self._rescheduling = rescheduling
        self._power = power
        self._accounting = accounting
        self._announcements = announcements
        self._metrics = metrics
        self._stop_timeout = stop_timeout
        self._tasks: dict[UUID, asyncio.Task[None]] = {}
        self._stopping = False

    def in_flight(self, uuid: UUID) -> bool:
        """Whether an operation works on ``uuid`` now, or will once it is resumed."""
        record = self._store.get(uuid)
        return uuid in self._tasks or (record is not None and record.state.is_unfinished)

    async def run(self) -> None:
        """Own the tasks until cancelled; then give them ``stop_timeout`` seconds, and leave the rest resumable."""
        try:
            await asyncio.Event().wait()
        finally:
            self._stopping = True
            if tasks := set(self._tasks.values()):
                log.info("instances.finishing", tasks=len(tasks))
                _, late = await asyncio.wait(tasks, timeout=self._stop_timeout)
                for task in late:
                    task.cancel()
                if late:
                    await asyncio.wait(late, timeout=1)

    def resume(self) -> None:
        """Take up every unfinished instance that nothing works on."""
        if self._stopping:
            return
        for record in self._store:
            if record.state.is_unfinished and record.uuid not in self._tasks:
                log.info("instance.resumed", instance_uuid=str(record.uuid), state=record.state)
                self._begin(record.uuid, self._operations.carry_out(record.uuid, resumed=True))

    async def build(self, instance: Instance, request_id: str, scheduling: Scheduling | None = None) -> Record:
        """Accept a build. The same request again is a success; another one with the same UUID is refused.

        One that a scheduler sends though this host has passed the instance on goes back to the schedulers; where none
        can take it, it ends in an error here. Raises ``InstanceExists``, ``JournalFailed``, ``BrokerUnavailable``.
        """
        # Whole, or not at all: what stands in the journal and nobody works on would wait for the next resume.
        return await uninterrupted(self._accept(instance, request_id, scheduling))

    async def terminate(self, uuid: UUID, request_id: str) -> None:
        """Accept a deletion: a build under way is ended, and nothing is left. What is gone is gone: a success.

        Raises ``JournalFailed``.
        """
        await uninterrupted(self._accept_deletion(uuid, request_id))

    async def change_power(self, uuid: UUID, to: State, request_id: str) -> Record:
        """Accept a start, a stop or a reboot: ``to`` is the state that the work on it has.

        What is so already is a success, and so is a request that comes again. Raises ``InstanceNotFound``,
        ``WrongState``, ``JournalFailed``.
        """
        return await uninterrupted(self._accept_power(uuid, to, request_id))

    async def start_again(self, uuid: UUID, last_request: str) -> None:
        """Start a guest that ran before its host was restarted, and return when that has ended, well or not.

        Raises as ``change_power``, also where a stop was asked for after ``last_request``, and
        ``HypervisorUnavailable``.
        """
        await self.observe(uuid, runs=await self._power.runs(uuid))
        await uninterrupted(self._accept_power(uuid, State.STARTING, f"req-{uuid4()}", unless_after=last_request))
        while (task := self._tasks.get(uuid)) is not None:
            await asyncio.wait({task})

    async def _accept_power(self, uuid: UUID, to: State, request_id: str, *, unless_after: str | None = None) -> Record:
        async with self._locks.of(uuid):
            record = self._known(uuid)
            if unless_after is not None:
                refuse_if_stopped_since(record, unless_after)
            verdict, accepted = judge(record, to, request_id)
            if verdict is Verdict.IS_SO:
                await self._announcements.conclude(accepted, POWER_CHANGES[to].action, "end")
            elif accepted is not record:
                await self._journal(accepted)
            if verdict is Verdict.BEGINS:
                self._begin(uuid, self._follow(self._tasks.get(uuid), uuid, cancel=record.state.is_unfinished))
            return accepted

    async def _accept(self, instance: Instance, request_id: str, scheduling: Scheduling | None) -> Record:
        async with self._locks.of(instance.uuid):
            record = self._store.get(instance.uuid)
            if record is not None and record.state is State.RESCHEDULED and scheduling is not None:
                return await self._send_back(record, instance, request_id, scheduling)
            if record is not None:
                return _same(record, instance)
            record = Record.accept(instance, request_id, scheduling)
            started = time.perf_counter()
            await self._journal(record)
            self._metrics.step_seconds.labels(Step.RECORD).observe(time.perf_counter() - started)
            # The journal shows it from within the save, and a resume may have begun it meanwhile.
            if instance.uuid not in self._tasks:
                self._begin(instance.uuid, self._operations.carry_out(instance.uuid, resumed=False))
            return record

    async def _send_back(self, record: Record, instance: Instance, request_id: str, scheduling: Scheduling) -> Record:
        if await self._rescheduling.send_back(record, instance, scheduling, request_id):
            return record
        # Nobody else will end it: it fails here, as a build that could not be passed on the first time.
        failing = record.with_(instance=instance, request_id=request_id, scheduling=scheduling, state=State.FAILING)
        await self._journal(failing)
        self._begin(instance.uuid, self._follow(self._tasks.get(instance.uuid), instance.uuid, cancel=False))
        return failing

    async def _accept_deletion(self, uuid: UUID, request_id: str) -> None:
        async with self._locks.of(uuid):
            record = self._store.get(uuid)
            if record is None or record.state.is_gone:
                await self._announcements.deleted(uuid, request_id)
            elif record.state is not State.DELETING:
                await self._journal(record.with_(state=State.DELETING, request_id=request_id, fault=None))
                self._begin(uuid, self._follow(self._tasks.get(uuid), uuid, cancel=True))

    async def _journal(self, record: Record) -> None:
        reached(CrashPoint.ACCEPT_BEFORE_SAVE)
        await in_thread(self._store.save, record)
        reached(CrashPoint.ACCEPT_AFTER_SAVE)

    def view(self, uuid: UUID) -> dict[str, Any]:
        """What is known of one instance. Raises ``InstanceNotFound``."""
        return self._view(self._known(uuid))

    def views(self) -> list[dict[str, Any]]:
        """What is known of every instance, oldest first."""
        return [self._view(record) for record in sorted(self._store.here(), key=lambda record: record.created_at)]

    def by_state(self) -> Labelled:
        counts = Counter(record.state.value for record in self._store.here())
        return [((state,), float(count)) for state, count in counts.items()]

    async def observe(self, uuid: UUID, *, runs: bool) -> None:
        """Note that libvirt runs the guest, or does not, without our doing."""
        async with self._locks.of(uuid):
            record = self._store.get(uuid)
            state = State.ACTIVE if runs else State.STOPPED
            if record is None or record.state not in {State.ACTIVE, State.STOPPED} or record.state is state:
                return
            observed = record.with_(state=state, fault=None)
            await self._announcements.conclude(observed, "start" if runs else "stop", "end", observed=True)
            log.info("instance.observed", instance_uuid=str(uuid), state=state)

    def _known(self, uuid: UUID) -> Record:
        record = self._store.get(uuid)
        if record is None or record.state.is_gone:
            raise InstanceNotFound(
                f"host {self._host} has no instance {uuid}",
                field="instance_uuid",
                remedy=f"'sev-agent instance list --host {self._host}' lists those it has",
            )
        return record

    def _view(self, record: Record) -> dict[str, Any]:
        instance = record.instance
        return {
            "uuid": str(record.uuid),
            "name": instance.name,
            "host": self._host,
            "state": record.state.value,
            "steps": [step.value for step in self._operations.steps(record.uuid)],
            "generation": record.generation.value if record.generation else None,
            "flavor": instance.flavor.model_dump(mode="json"),
            "image_id": str(instance.image.id),
            "firmware": str(record.firmware) if record.firmware else None,
            "firmware_sha256": record.firmware_sha256,
            "auto_start": instance.auto_start,
            "request_id": record.request_id,
            "created_at": record.created_at.isoformat(),
            "updated_at": record.updated_at.isoformat(),
            "fault": _plain(record.fault),
            "waiting_for": _plain(self._operations.waiting_for(record.uuid)),
        }

    def _begin(self, uuid: UUID, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work, name=f"instance-{uuid}")
        self._tasks[uuid] = task

        def done(task: asyncio.Task[None]) -> None:
            if self._tasks.get(uuid) is task:
                del self._tasks[uuid]
            self._accounting.mark(uuid)
            if not task.cancelled() and (error := task.exception()) is not None:
                log.error("instance.task.failed", instance_uuid=str(uuid), exc_info=error)

        task.add_done_callback(done)

    async def _follow(self, previous: asyncio.Task[None] | None, uuid: UUID, *, cancel: bool) -> None:
        """Wait until what worked on ``uuid`` so far has let go, ended by ``cancel`` or not; then do what is next."""
        if previous is not None:
            if cancel:
                previous.cancel()
            # Also where this task is cancelled itself: whoever follows it waits for this one alone.
            await uninterrupted(asyncio.wait({previous}))
        await self._operations.carry_out(uuid, resumed=False)


def _plain(fault: Fault | None) -> dict[str, Any] | None:
    return fault.model_dump(mode="json") if fault else None


def _same(record: Record, instance: Instance) -> Record:
    if record.state.is_last or record.state.is_gone:
        raise InstanceExists(
            f"instance {instance.uuid} is {record.state} here", field="instance.uuid", remedy="use a new UUID"
        )
    if record.instance != instance:
        raise InstanceExists(
            f"instance {instance.uuid} exists with other content ({record.state})",
            field="instance.uuid",
            remedy="use a new UUID, or delete the instance first",
        )
    return record
