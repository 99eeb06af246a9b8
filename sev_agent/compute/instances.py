"""The instances of a host: requests accepted, worked on one at a time for each instance, and told of."""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any
from uuid import UUID, uuid4
from weakref import WeakValueDictionary

import structlog

from sev_agent.compute.accounting import Accounting
from sev_agent.compute.announcements import Announcements
from sev_agent.compute.build import Builder
from sev_agent.compute.power import Power
from sev_agent.compute.power_change import POWER_CHANGES, Verdict, judge
from sev_agent.compute.progress import Progress, Step
from sev_agent.compute.record import Fault, JournalFailed, Record, RecordStore, State, Superseded
from sev_agent.config import BuildsSection
from sev_agent.errors import Conflict, NotFound, SevAgentError, Unavailable
from sev_agent.hypervisor.errors import HypervisorUnavailable
from sev_agent.observe.metrics import Labelled, Metrics
from sev_agent.schema import Instance
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
    task of its own, over restarts if need be. Work that the absence of libvirt or Placement stopped waits for the next
    ``resume``; ``on_postponed`` is told of it.
    """

    def __init__(
        self,
        *,
        host: str,
        store: RecordStore,
        builder: Builder,
        power: Power,
        accounting: Accounting,
        announcements: Announcements,
        metrics: Metrics,
        settings: BuildsSection,
        on_postponed: Callable[[], None],
    ) -> None:
        self._host = host
        self._store = store
        self._builder = builder
        self._power = power
        self._accounting = accounting
        self._announcements = announcements
        self._metrics = metrics
        self._stop_timeout = settings.stop_timeout
        self._slots = asyncio.Semaphore(settings.max_concurrent)
        # A guest may take a minute to shut down: that must not hold up builds.
        self._power_slots = asyncio.Semaphore(settings.max_power_changes)
        self._on_postponed = on_postponed
        self._locks: WeakValueDictionary[UUID, asyncio.Lock] = WeakValueDictionary()
        self._tasks: dict[UUID, asyncio.Task[None]] = {}
        self._stopping = False
        self._progress: dict[UUID, Progress] = {}

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
                self._begin(record.uuid, self._work(record.uuid, resumed=True))

    async def build(self, instance: Instance, request_id: str) -> Record:
        """Accept a build. The same request again is a success; another one with the same UUID is refused.

        Raises ``InstanceExists``, ``JournalFailed``.
        """
        # Whole, or not at all: what stands in the journal and nobody works on would wait for the next resume.
        return await uninterrupted(self._accept(instance, request_id))

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

    async def start_again(self, uuid: UUID) -> None:
        """Start a guest that ran before its host was restarted, and return when that has ended, well or not.

        Raises as ``change_power``, and ``HypervisorUnavailable``.
        """
        await self.observe(uuid, runs=await self._power.runs(uuid))
        await self.change_power(uuid, State.STARTING, f"req-{uuid4()}")
        while (task := self._tasks.get(uuid)) is not None:
            await asyncio.wait({task})

    async def _accept_power(self, uuid: UUID, to: State, request_id: str) -> Record:
        async with self._lock(uuid):
            record = self._known(uuid)
            verdict, accepted = judge(record, to, request_id)
            if verdict is Verdict.IS_SO:
                await self._announcements.conclude(accepted, POWER_CHANGES[to].action, "end")
            elif accepted is not record:
                await in_thread(self._store.save, accepted)
            if verdict is Verdict.BEGINS:
                self._begin(uuid, self._follow(self._tasks.get(uuid), uuid, cancel=record.state.is_unfinished))
            return accepted

    async def _accept(self, instance: Instance, request_id: str) -> Record:
        async with self._lock(instance.uuid):
            record = self._store.get(instance.uuid)
            if record is not None:
                return _same(record, instance)
            record = Record.accept(instance, request_id)
            started = time.perf_counter()
            await in_thread(self._store.save, record)
            self._metrics.step_seconds.labels(Step.RECORD).observe(time.perf_counter() - started)
            # The journal shows it from within the save, and a resume may have begun it meanwhile.
            if instance.uuid not in self._tasks:
                self._begin(instance.uuid, self._work(instance.uuid, resumed=False))
            return record

    async def _accept_deletion(self, uuid: UUID, request_id: str) -> None:
        async with self._lock(uuid):
            record = self._store.get(uuid)
            if record is None or record.state is State.DELETED:
                await self._announcements.deleted(uuid, request_id)
            elif record.state is not State.DELETING:
                await in_thread(self._store.save, record.with_(state=State.DELETING, request_id=request_id))
                self._begin(uuid, self._follow(self._tasks.get(uuid), uuid, cancel=True))

    def view(self, uuid: UUID) -> dict[str, Any]:
        """What is known of one instance. Raises ``InstanceNotFound``."""
        return self._view(self._known(uuid))

    def views(self) -> list[dict[str, Any]]:
        """What is known of every instance, oldest first."""
        records = sorted(self._store, key=lambda record: record.created_at)
        return [self._view(record) for record in records if record.state is not State.DELETED]

    def by_state(self) -> Labelled:
        counts = Counter(record.state.value for record in self._store if record.state is not State.DELETED)
        return [((state,), float(count)) for state, count in counts.items()]

    async def observe(self, uuid: UUID, *, runs: bool) -> None:
        """Note that libvirt runs the guest, or does not, without our doing."""
        async with self._lock(uuid):
            record = self._store.get(uuid)
            state = State.ACTIVE if runs else State.STOPPED
            if record is None or record.state not in {State.ACTIVE, State.STOPPED} or record.state is state:
                return
            observed = record.with_(state=state, fault=None)
            await self._announcements.conclude(observed, "start" if runs else "stop", "end", observed=True)
            log.info("instance.observed", instance_uuid=str(uuid), state=state)

    def _known(self, uuid: UUID) -> Record:
        record = self._store.get(uuid)
        if record is None or record.state is State.DELETED:
            raise InstanceNotFound(
                f"host {self._host} has no instance {uuid}",
                field="instance_uuid",
                remedy=f"'sev-agent instance list --host {self._host}' lists those it has",
            )
        return record

    def _view(self, record: Record) -> dict[str, Any]:
        instance, progress = record.instance, self._progress.get(record.uuid)
        return {
            "uuid": str(record.uuid),
            "name": instance.name,
            "host": self._host,
            "state": record.state.value,
            "steps": [step.value for step in progress.under_way] if progress else [],
            "generation": record.generation.value if record.generation else None,
            "flavor": instance.flavor.model_dump(mode="json"),
            "image_id": str(instance.image.id),
            "firmware": str(record.firmware) if record.firmware else None,
            "auto_start": instance.auto_start,
            "request_id": record.request_id,
            "created_at": record.created_at.isoformat(),
            "updated_at": record.updated_at.isoformat(),
            "fault": record.fault.model_dump(mode="json") if record.fault else None,
        }

    def _lock(self, uuid: UUID) -> asyncio.Lock:
        return self._locks.setdefault(uuid, asyncio.Lock())

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
        await self._work(uuid, resumed=False)

    async def _work(self, uuid: UUID, *, resumed: bool) -> None:
        with structlog.contextvars.bound_contextvars(instance_uuid=str(uuid)):
            record = self._store.get(uuid)
            assert record is not None, "work follows the record"
            if not record.state.is_unfinished:
                return
            with structlog.contextvars.bound_contextvars(request_id=record.request_id):
                try:
                    await self._steps_of(record.state)(record, resumed=resumed)
                except Superseded:
                    log.info("instance.superseded")
                except (SevAgentError, OSError) as error:
                    # The record says what is left to do; a later resume does it.
                    code = error.code if isinstance(error, SevAgentError) else type(error).__name__
                    log.warning("instance.postponed", state=record.state, code=code, error=str(error))
                    self._on_postponed()

    def _steps_of(self, state: State) -> Callable[..., Coroutine[Any, Any, None]]:
        others = {State.BUILDING: self._build, State.FAILING: self._fail, State.DELETING: self._delete}
        return others.get(state, self._change_power)

    async def _change_power(self, record: Record, *, resumed: bool) -> None:
        del resumed
        action = POWER_CHANGES[record.state].action
        self._announcements.power(record, action, "start")
        async with self._power_slots:
            while record.state.is_unfinished:
                record = await self._change_power_once(record)
        if record.fault is None:
            log.info("instance.power.ended", action=action)
        code = record.fault.code if record.fault else ""
        self._metrics.power_changes.labels(action, "error" if code else "ended", code).inc()

    async def _change_power_once(self, record: Record) -> Record:
        """Carry out what the state of ``record`` stands for, and return the record in the state that comes of it."""
        change = POWER_CHANGES[record.state]
        try:
            await self._carry_out(record)
        except Unavailable:
            # No other host can do it: it waits for what is away.
            raise
        except Exception as error:
            fault = Fault.of(error, change.action)
            log.warning(
                "instance.power.failed",
                action=change.action,
                code=fault.code,
                error=str(error),
                exc_info=None if isinstance(error, SevAgentError) else error,
            )
            state = State.ACTIVE if await self._power.runs(record.uuid) else State.STOPPED
            return await self._move(record, state=state, fault=fault)
        return await self._move(record, state=change.leads_to)

    async def _carry_out(self, record: Record) -> None:
        match record.state:
            case State.STARTING:
                await self._power.start(record)
            case State.STOPPING:
                await self._power.stop(record)
            case State.RESTARTING:
                await self._power.restart(record)
            case _:
                await self._power.halt(record, hard=record.state is State.REBOOTING_HARD)

    async def _move(self, record: Record, **changes: Any) -> Record:
        """Save ``changes`` of what stands in the journal; what is the end of the work is told with it.

        Raises ``Superseded`` where that is not in ``record``'s state any more.
        """
        async with self._lock(record.uuid):
            present = self._current(record)
            if present.state is not record.state:
                raise Superseded(f"instance {record.uuid} is {present.state} now")
            moved = present.with_(**changes)
            if moved.state.is_unfinished:
                await in_thread(self._store.save, moved)
            else:
                action = POWER_CHANGES[record.state].action
                await self._announcements.conclude(moved, action, "error" if moved.fault else "end")
            return moved

    async def _build(self, record: Record, *, resumed: bool) -> None:
        started = time.perf_counter()
        progress = Progress(lambda step, seconds: self._stepped(record, step, seconds))
        self._progress[record.uuid] = progress
        self._announcements.create(record, "start")
        try:
            async with self._slots:
                active = await self._builder.build(record, progress, resumed=resumed)
                seconds = time.perf_counter() - started
                await self._announcements.conclude(active, "create", "end", seconds=round(seconds, 3))
        except (HypervisorUnavailable, Superseded):
            raise
        except Exception as error:
            fault = Fault.of(error, progress.failed)
            log.warning(
                "instance.build.failed",
                step=fault.step,
                code=fault.code,
                error=str(error),
                exc_info=None if isinstance(error, SevAgentError) else error,
            )
            failing = self._current(record).with_(state=State.FAILING, fault=fault)
            # A disk that is full takes no record, before the undoing makes room for it.
            with contextlib.suppress(JournalFailed):
                await in_thread(self._store.save, failing)
            await self._fail(failing, resumed=False)
        else:
            log.info("instance.build.ended", seconds=round(seconds, 3))
            self._metrics.builds.labels("active", "").inc()
            self._metrics.build_seconds.observe(seconds)
        finally:
            self._progress.pop(record.uuid, None)

    async def _fail(self, record: Record, *, resumed: bool) -> None:
        del resumed
        await self._builder.undo(record)
        failed = record.with_(state=State.ERROR, base_image=None)
        assert failed.fault is not None, "a build fails by an error"
        await self._announcements.conclude(failed, "create", "error")
        self._metrics.builds.labels("error", failed.fault.code).inc()

    async def _delete(self, record: Record, *, resumed: bool) -> None:
        del resumed
        self._announcements.delete(record, "start")
        await self._builder.undo(record)
        await self._announcements.conclude(record.deleted(), "delete", "end")
        log.info("instance.deleted")
        self._metrics.deletions.labels("deleted").inc()

    def _stepped(self, record: Record, step: Step, seconds: float) -> None:
        self._metrics.step_seconds.labels(step).observe(seconds)
        log.debug("instance.build.step", step=step, seconds=round(seconds, 4))
        self._announcements.create(record, "progress", step=step.value, seconds=round(seconds, 4))

    def _current(self, record: Record) -> Record:
        """The record as the build's steps last saved it."""
        return self._store.get(record.uuid) or record


def _same(record: Record, instance: Instance) -> Record:
    if record.state.is_last:
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
