"""The instances of a host: requests accepted, worked on one at a time for each instance, and told of."""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any
from uuid import UUID
from weakref import WeakValueDictionary

import structlog

from sev_agent.compute.accounting import Accounting
from sev_agent.compute.announcements import Announcements
from sev_agent.compute.build import Builder
from sev_agent.compute.progress import Progress, Step
from sev_agent.compute.record import Fault, JournalFailed, Record, RecordStore, State, Superseded
from sev_agent.config import BuildsSection
from sev_agent.errors import Conflict, NotFound, SevAgentError
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

    A request is journaled by ``build`` or ``terminate``; then it is this object's to finish, in a task of its own,
    over restarts if need be. Work that libvirt's absence stopped waits for the next ``resume``.
    """

    def __init__(
        self,
        *,
        host: str,
        store: RecordStore,
        builder: Builder,
        accounting: Accounting,
        announcements: Announcements,
        metrics: Metrics,
        settings: BuildsSection,
    ) -> None:
        self._host = host
        self._store = store
        self._builder = builder
        self._accounting = accounting
        self._announcements = announcements
        self._metrics = metrics
        self._stop_timeout = settings.stop_timeout
        self._slots = asyncio.Semaphore(settings.max_concurrent)
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
                self._begin(uuid, self._replace(self._tasks.get(uuid), uuid))

    def view(self, uuid: UUID) -> dict[str, Any]:
        """What is known of one instance. Raises ``InstanceNotFound``."""
        record = self._store.get(uuid)
        if record is None or record.state is State.DELETED:
            raise InstanceNotFound(
                f"host {self._host} has no instance {uuid}",
                field="instance_uuid",
                remedy=f"'sev-agent instance list --host {self._host}' lists those it has",
            )
        return self._view(record)

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
            await in_thread(self._store.save, record.with_(state=state))
            log.info("instance.observed", instance_uuid=str(uuid), state=state)

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

    async def _replace(self, previous: asyncio.Task[None] | None, uuid: UUID) -> None:
        """End what worked on ``uuid`` so far, wait until it has let go, and do what the journal now says."""
        if previous is not None:
            previous.cancel()
            await asyncio.wait({previous})
        await self._work(uuid, resumed=False)

    async def _work(self, uuid: UUID, *, resumed: bool) -> None:
        with structlog.contextvars.bound_contextvars(instance_uuid=str(uuid)):
            record = self._store.get(uuid)
            assert record is not None, "work follows the record"
            with structlog.contextvars.bound_contextvars(request_id=record.request_id):
                try:
                    await self._steps_of(record.state)(record, resumed=resumed)
                except Superseded:
                    log.info("instance.superseded")
                except (SevAgentError, OSError) as error:
                    # The record says what is left to do; a later resume does it.
                    code = error.code if isinstance(error, SevAgentError) else type(error).__name__
                    log.warning("instance.postponed", state=record.state, code=code, error=str(error))

    def _steps_of(self, state: State) -> Callable[..., Coroutine[Any, Any, None]]:
        return {State.BUILDING: self._build, State.FAILING: self._fail, State.DELETING: self._delete}[state]

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
