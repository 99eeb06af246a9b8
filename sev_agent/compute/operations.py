"""Carrying out what was accepted for an instance: build, failure, deletion, and changes of its power, to their ends."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine
from typing import Any
from uuid import UUID

import structlog

from sev_agent.compute.announcements import Announcements
from sev_agent.compute.build import Builder, ForeignDomain
from sev_agent.compute.instance_locks import InstanceLocks
from sev_agent.compute.power import Power
from sev_agent.compute.power_change import POWER_CHANGES
from sev_agent.compute.progress import Progress, Step
from sev_agent.compute.record import Fault, Record, State
from sev_agent.compute.record_store import JournalFailed, RecordStore, Superseded
from sev_agent.compute.rescheduling import Rescheduling
from sev_agent.config import BuildsSection
from sev_agent.crash_points import CrashPoint, reached
from sev_agent.errors import SevAgentError, Unavailable
from sev_agent.hypervisor.errors import HypervisorUnavailable
from sev_agent.observe.metrics import Metrics
from sev_agent.uninterrupted import in_thread

log = structlog.stdlib.get_logger(__name__)


class Operations:
    """Does what the state of a record asks for, and saves and tells what comes of it.

    Builds are bounded in number, and changes of power by a bound of their own. Work that could not go on leaves its
    record as it was; ``on_postponed`` is told where that is for the absence of libvirt or Placement.
    """

    def __init__(
        self,
        *,
        store: RecordStore,
        locks: InstanceLocks,
        builder: Builder,
        power: Power,
        rescheduling: Rescheduling,
        announcements: Announcements,
        metrics: Metrics,
        settings: BuildsSection,
        on_postponed: Callable[[], None],
    ) -> None:
        self._store = store
        self._locks = locks
        self._builder = builder
        self._power = power
        self._rescheduling = rescheduling
        self._announcements = announcements
        self._metrics = metrics
        self._slots = asyncio.Semaphore(settings.max_concurrent)
        # A guest may take a minute to shut down: that must not hold up builds.
        self._power_slots = asyncio.Semaphore(settings.max_power_changes)
        self._on_postponed = on_postponed
        self._progress: dict[UUID, Progress] = {}
        self._waiting: dict[UUID, Fault] = {}

    def steps(self, uuid: UUID) -> tuple[Step, ...]:
        """The steps that are under way for ``uuid`` now."""
        progress = self._progress.get(uuid)
        return progress.under_way if progress else ()

    def waiting_for(self, uuid: UUID) -> Fault | None:
        """Why the work on ``uuid`` could not go on, where it will be tried again."""
        return self._waiting.get(uuid)

    async def carry_out(self, uuid: UUID, *, resumed: bool) -> None:
        """Do what is left to do for ``uuid``. A ``resumed`` one was begun by an earlier run, or did not get through."""
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
                    self._waiting.pop(uuid, None)
                except (SevAgentError, OSError) as error:
                    # The record says what is left to do; a later resume does it.
                    code = error.code if isinstance(error, SevAgentError) else type(error).__name__
                    log.warning("instance.postponed", state=record.state, code=code, error=str(error))
                    self._waiting[uuid] = Fault.of(error, record.state)
                    # What is away may be back in a moment; what is refused is not worth more than the minutely look.
                    if isinstance(error, Unavailable):
                        self._on_postponed()
                else:
                    self._waiting.pop(uuid, None)

    def _steps_of(self, state: State) -> Callable[..., Coroutine[Any, Any, None]]:
        others = {State.BUILDING: self._build, State.FAILING: self._fail, State.DELETING: self._delete}
        return others.get(state, self._change_power)

    async def _change_power(self, record: Record, *, resumed: bool) -> None:
        del resumed
        action = POWER_CHANGES[record.state].action
        if not self._is_again(record):
            self._announcements.power(record, action, "start")
        reached(CrashPoint.POWER_AFTER_NOTICE)
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
        async with self._locks.of(record.uuid):
            present = self._current(record)
            if present.state is not record.state:
                raise Superseded(f"instance {record.uuid} is {present.state} now")
            moved = present.with_(**changes)
            if moved.state.is_unfinished:
                reached(CrashPoint.REBOOT_BEFORE_SAVE)
                await in_thread(self._store.save, moved)
                reached(CrashPoint.REBOOT_AFTER_SAVE)
            else:
                action = POWER_CHANGES[record.state].action
                await self._announcements.conclude(moved, action, "error" if moved.fault else "end")
            return moved

    async def _build(self, record: Record, *, resumed: bool) -> None:
        started = time.perf_counter()
        progress = self._follow(record, self._announcements.create)
        if not self._is_again(record):
            self._announcements.create(record, "start")
        reached(CrashPoint.BUILD_AFTER_NOTICE)
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
            failing = self._current(record).with_(
                state=State.FAILING, fault=fault, foreign=isinstance(error, ForeignDomain)
            )
            # A disk that is full takes no record, before the undoing makes room for it.
            reached(CrashPoint.FAIL_BEFORE_SAVE)
            with contextlib.suppress(JournalFailed):
                await in_thread(self._store.save, failing)
            reached(CrashPoint.FAIL_AFTER_SAVE)
            await self._fail(failing, resumed=False)
        else:
            log.info("instance.build.ended", seconds=round(seconds, 3))
            self._metrics.builds.labels("active", "").inc()
            self._metrics.build_seconds.observe(seconds)
        finally:
            self._progress.pop(record.uuid, None)

    async def _fail(self, record: Record, *, resumed: bool) -> None:
        del resumed
        assert record.fault is not None, "a build fails by an error"
        try:
            await self._builder.undo(record, Progress(self._measure))
        except Unavailable:
            raise
        except (SevAgentError, OSError):
            await self._failed_already(record)
            raise
        if self._rescheduling.concerns(record) and self._current(record).state is not State.FAILING:
            # A journal that still says that it is built here would have it built a second time, beside the other host.
            await in_thread(self._store.save, record)
        # Stamped before another host can hear of it: what that one tells is newer.
        passed_on = record.rescheduled()
        if await self._rescheduling.pass_on(record):
            await self._announcements.conclude(passed_on, "create", "error", rescheduled=True)
            self._metrics.builds.labels("rescheduled", record.fault.code).inc()
            return
        failed = record.with_(state=State.ERROR, base_image=None, failure_told=False)
        await self._announcements.conclude(failed, "create", "error")
        self._metrics.builds.labels("error", record.fault.code).inc()

    async def _failed_already(self, record: Record) -> None:
        """Tell that a build failed though its undoing does not get on: once, however often that is tried.

        The state that is told is still ``failing``: another host may be asked yet, once nothing of it is left here.
        """
        if not record.failure_told:
            await self._announcements.conclude(record.with_(failure_told=True), "create", "error")

    async def _delete(self, record: Record, *, resumed: bool) -> None:
        del resumed
        if not self._is_again(record):
            self._announcements.delete(record, "start")
        reached(CrashPoint.DELETE_AFTER_NOTICE)
        progress = self._follow(record, self._announcements.delete)
        try:
            await self._builder.undo(record, progress)
        except Unavailable:
            raise
        except (SevAgentError, OSError) as error:
            await self._refused(record, Fault.of(error, progress.failed))
            raise
        finally:
            self._progress.pop(record.uuid, None)
        await self._announcements.conclude(record.deleted(), "delete", "end")
        log.info("instance.deleted")
        self._metrics.deletions.labels("deleted").inc()

    def _is_again(self, record: Record) -> bool:
        """Whether this very work was begun before, and could not go on: then its start was told."""
        waiting = self._waiting.get(record.uuid)
        return waiting is not None and waiting.step == record.state

    async def _refused(self, record: Record, fault: Fault) -> None:
        """Note why a deletion does not get on, and tell it: once, however often it is tried."""
        if record.fault != fault:
            await self._announcements.conclude(record.with_(fault=fault), "delete", "error")
            self._metrics.deletions.labels("error").inc()

    def _follow(self, record: Record, tell: Callable[..., None]) -> Progress:
        """Show the steps of ``record``'s work from now on, and ``tell`` each that ends."""

        def stepped(step: Step, seconds: float) -> None:
            self._measure(step, seconds)
            tell(record, "progress", step=step.value, seconds=round(seconds, 4))

        progress = self._progress[record.uuid] = Progress(stepped)
        return progress

    def _measure(self, step: Step, seconds: float) -> None:
        self._metrics.step_seconds.labels(step).observe(seconds)
        log.debug("instance.step", step=step, seconds=round(seconds, 4))

    def _current(self, record: Record) -> Record:
        """The record as the build's steps last saved it."""
        return self._store.get(record.uuid) or record
