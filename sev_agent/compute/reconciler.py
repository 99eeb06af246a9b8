"""The minutely comparison of what runs with what Placement counts."""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from logging import ERROR, WARNING
from typing import Any, Final

import structlog
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.triggers.interval import IntervalTrigger

from sev_agent.compute.accounting import Accounting
from sev_agent.compute.drift import Reconciliation
from sev_agent.compute.inventory import HostResources
from sev_agent.compute.record_store import RecordStore
from sev_agent.config import ReconcilerSection
from sev_agent.errors import SevAgentError
from sev_agent.hypervisor.errors import HypervisorError, HypervisorUnavailable, NoAnswer
from sev_agent.observe.health import Dependency, Health
from sev_agent.observe.metrics import Metrics
from sev_agent.uninterrupted import in_thread, raise_if_cancelled

log = structlog.stdlib.get_logger(__name__)

_JOB: Final = "reconcile"
_RETRY_SECONDS: Final = 3.0
_LATE_SECONDS: Final = 2.0
_THOROUGH_EVERY: Final = 60
_MEMORY_OF_GONE: Final = timedelta(days=1)
_MOST_GONE: Final = 10_000
"""A build and its deletion every nine seconds for a whole day; each is a file, and is read at every start."""

OnDrift = Callable[[list[dict[str, Any]]], None]
"""Takes what was found different, as ``Reconciliation.findings`` tells it, when it is news."""


@dataclass(frozen=True, slots=True)
class LastComparison:
    """When the last one that ended well did (seconds of ``time.time``), and how many differences it found.

    These are counted by their kind and by whether they were repaired.
    """

    at: float
    found: Mapping[tuple[str, bool], int]


class Reconciler:
    """Runs the comparison at start, every minute, and soon again after one that failed; never two at once.

    Every difference is logged, counted, and told to ``on_drift``; one that stays is told once.

    Where nothing changed a run costs Placement one read and no write. That read tells what is used of each provider,
    not by whom, nor the limits of a single claim. So every sixtieth run is thorough, as the first one always is: it
    reads all, and writes what it finds wrong.
    """

    def __init__(
        self,
        *,
        accounting: Accounting,
        resources: Callable[[], Awaitable[HostResources]],
        store: RecordStore,
        resume: Callable[[], None],
        health: Health,
        metrics: Metrics,
        settings: ReconcilerSection,
        on_drift: OnDrift = lambda _: None,
    ) -> None:
        self._accounting = accounting
        self._resources = resources
        self._store = store
        self._resume = resume
        self._health = health
        self._metrics = metrics
        self._settings = settings
        self._on_drift = on_drift
        self._told: list[dict[str, Any]] = []
        self._scheduler = AsyncIOScheduler(timezone=UTC)
        self._due = asyncio.Event()
        self._blamed_libvirt = False
        self._runs_since_thorough = 0
        self.last: LastComparison | None = None

    async def run(self) -> None:
        """Compare whenever it is time, until cancelled."""
        # The job only rings: what it rings for is this task's own, so that it ends with it, and runs one at a time.
        self._scheduler.add_job(
            self._ring,
            IntervalTrigger(
                seconds=max(1, round(self._settings.interval)), jitter=round(self._settings.jitter) or None
            ),
            id=_JOB,
            coalesce=True,
            max_instances=1,
            misfire_grace_time=None,
        )
        self._scheduler.start()
        try:
            while True:
                raise_if_cancelled()
                await self._rung()
                await self._compare()
        finally:
            self._scheduler.shutdown(wait=False)

    def soon(self, *, after: float = 0) -> None:
        """Have a run no later than ``after`` seconds from now; the rhythm starts from one that was moved forward."""
        if after:
            self._move_forward(after)
        else:
            self._due.set()

    def _move_forward(self, after: float) -> bool:
        """Whether the next run would have come later."""
        due = datetime.now(UTC) + timedelta(seconds=after)
        job = self._scheduler.get_job(_JOB)
        if job is None or job.next_run_time <= due:
            return False
        job.modify(next_run_time=due)
        return True

    async def now(self, *, dry_run: bool) -> Reconciliation:
        """Compare thoroughly, beside the rhythm; a dry run changes nothing. Raises what the comparison raises."""
        resources = await self._resources()
        outcome = await self._accounting.reconcile(resources, thorough=True, dry_run=dry_run)
        if not dry_run:
            self._note(outcome)
        return outcome

    async def _rung(self) -> None:
        """Wait until it is time.

        The scheduler goes by the machine's clock: one that was set back would silence it for as long.
        """
        interval = self._settings.interval + self._settings.jitter
        try:
            async with asyncio.timeout(interval + _LATE_SECONDS):
                await self._due.wait()
        except TimeoutError:
            # Where the next run is no later than it should be, only this process was held up.
            if self._move_forward(interval):
                log.warning("reconciler.clock_set_back", silent_seconds=interval + _LATE_SECONDS)
        self._due.clear()

    async def _ring(self) -> None:
        # A coroutine, because the scheduler runs plain functions in threads, where an event must not be set.
        self._due.set()

    async def _compare(self) -> None:
        self._runs_since_thorough += 1
        thorough = self._runs_since_thorough >= _THOROUGH_EVERY
        try:
            outcome = await self._accounting.reconcile(await self._resources(), thorough=thorough)
        except SevAgentError as error:
            self._failed(error)
            return
        if thorough:
            self._runs_since_thorough = 0
        self._note(outcome)
        self._resume()
        await in_thread(self._store.forget_gone, older_than=_MEMORY_OF_GONE, most=_MOST_GONE)

    def _failed(self, error: SevAgentError) -> None:
        self._metrics.reconciliations.labels("failed").inc()
        self._blamed_libvirt = isinstance(error, HypervisorError)
        at_fault = Dependency.LIBVIRT if self._blamed_libvirt else Dependency.PLACEMENT
        if self._health.down(at_fault, str(error)):
            log.warning("reconciliation.failed", dependency=at_fault, code=error.code, error=str(error))
        # A connection that is lost brings the next comparison by its return; anything else is tried again.
        if isinstance(error, NoAnswer) or not isinstance(error, HypervisorUnavailable):
            self.soon(after=_RETRY_SECONDS)

    def _note(self, outcome: Reconciliation) -> None:
        self._health.up(Dependency.PLACEMENT)
        if self._blamed_libvirt:
            # Only what was said here is taken back here: whether libvirt is connected is its connection's to say.
            self._health.up(Dependency.LIBVIRT)
            self._blamed_libvirt = False
        self._metrics.reconciliations.labels("clean" if outcome.is_clean else "repaired").inc()
        self._metrics.reconciled_at.set_to_current_time()
        findings = outcome.findings()
        self.last = LastComparison(time.time(), Counter((found["kind"], found["repaired"]) for found in findings))
        for found in findings:
            self._metrics.differences.labels(found["kind"], str(found["repaired"]).lower()).inc()
        news = [found for found in findings if found["repaired"] or found not in self._told]
        self._told = [found for found in findings if not found["repaired"]]
        for found in news:
            log.log(WARNING if found["repaired"] else ERROR, "reconciliation.difference", **found)
        if news:
            self._on_drift(news)
