"""The comparison runs when it should, and says how it went."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest

from sev_agent.compute import reconciler as reconciler_module
from sev_agent.compute.inventory import HostResources
from sev_agent.compute.reconciler import Reconciler
from sev_agent.compute.record import State
from sev_agent.config import ReconcilerSection
from sev_agent.hypervisor.errors import HypervisorError, HypervisorUnavailable
from sev_agent.observe.health import Dependency, Health
from sev_agent.observe.metrics import Metrics
from sev_agent.openstack.exchange import ServiceUnavailable
from sev_agent.openstack.placement import Allocation, Provider
from tests.integration.compute.conftest import FULL_SIZE, CountingHost, resources
from tests.libvirt_host import PATIENCE
from tests.releases import release
from tests.requests import record


class Run:
    """A reconciler at work. ``resumed`` counts its successes; ``resources`` may be made to fail."""

    def __init__(self, host: CountingHost, interval: float) -> None:
        self.health = Health()
        self.metrics = Metrics()
        self.succeeded: asyncio.Queue[None] = asyncio.Queue()
        self.asked: asyncio.Queue[None] = asyncio.Queue()
        self.fault: Exception | None = None
        self.told: list[list[str]] = []
        self.reconciler = Reconciler(
            accounting=host.accounting,
            resources=self._resources,
            store=host.store,
            resume=lambda: self.succeeded.put_nowait(None),
            health=self.health,
            metrics=self.metrics,
            settings=ReconcilerSection(interval=interval, jitter=0),
            on_drift=lambda findings: self.told.append([found["kind"] for found in findings]),
        )

    async def _resources(self) -> HostResources:
        self.asked.put_nowait(None)
        if self.fault is not None:
            raise self.fault
        return resources()

    def counted(self, outcome: str) -> float:
        name, labels = "sev_agent_reconciliations_total", {"outcome": outcome}
        return self.metrics.registry.get_sample_value(name, labels) or 0


Start = Callable[[float], Run]


@pytest.fixture
async def start(host: CountingHost) -> AsyncIterator[Start]:
    """Runs a reconciler with the given interval in seconds."""
    tasks = []

    def run(interval: float) -> Run:
        started = Run(host, interval)
        tasks.append(asyncio.create_task(started.reconciler.run()))
        return started

    yield run
    for task in tasks:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def soon(waiting: Awaitable[None]) -> None:
    async with asyncio.timeout(PATIENCE):
        await waiting


async def test_asked_for(start: Start) -> None:
    """It compares at once when asked to, resumes what is unfinished, and Placement is known to be up."""
    run = start(3600)

    run.reconciler.soon()
    await soon(run.succeeded.get())

    assert run.health.conditions[Dependency.PLACEMENT].up
    assert run.counted("repaired") == 1
    run.reconciler.soon()
    await soon(run.succeeded.get())
    assert run.counted("clean") == 1
    assert run.reconciler.last is not None
    assert not run.reconciler.last.found


async def test_by_itself(start: Start) -> None:
    """It compares again after each interval, without being asked."""
    run = start(1)

    await soon(run.succeeded.get())
    await soon(run.succeeded.get())


async def test_later_run_is_asked_for(start: Start) -> None:
    """Whoever asks for a run at a later time than the next one does not push that back."""
    run = start(600)
    run.reconciler.soon()
    await soon(run.succeeded.get())
    job = run.reconciler._scheduler.get_job("reconcile")
    assert job is not None
    due = job.next_run_time

    run.reconciler.soon(after=3600)
    assert job.next_run_time == due
    run.reconciler.soon(after=60)
    assert job.next_run_time < due


async def test_clock_is_set_back(start: Start) -> None:
    """A clock that is set back by a day does not silence it for a day: the rhythm goes on."""
    run = start(1)
    await soon(run.succeeded.get())
    # To the scheduler it is the same whether the clock goes back or what it waits for goes forward.
    run.reconciler._scheduler.modify_job("reconcile", next_run_time=datetime.now(UTC) + timedelta(days=1))

    for _ in range(3):
        await soon(run.succeeded.get())


async def test_difference_is_counted(host: CountingHost, start: Start) -> None:
    """A guest that is found running is a difference, told in the metrics, and known of the last comparison."""
    run = start(3600)
    await host.start_guest(ours=False)

    run.reconciler.soon()
    await soon(run.succeeded.get())

    assert run.metrics.registry.get_sample_value("sev_agent_drift_total", {"kind": "missing", "repaired": "true"}) == 1
    assert run.metrics.registry.get_sample_value("sev_agent_last_reconciliation_timestamp_seconds") == pytest.approx(
        datetime.now(UTC).timestamp(), abs=60
    )
    assert run.reconciler.last is not None
    assert run.reconciler.last.found["missing", True] == 1


async def test_drift_is_told_once(host: CountingHost, start: Start) -> None:
    """What was repaired is told each time, what cannot be repaired is told once, but stands in each count."""
    run = start(3600)
    for _ in range(3):
        await host.start_guest(ours=False)  # for two slots

    for _ in range(3):
        run.reconciler.soon()
        await soon(run.succeeded.get())

    kinds = [kind for told in run.told for kind in told]
    unrepaired = run.metrics.registry.get_sample_value(
        "sev_agent_drift_total", {"kind": "missing", "repaired": "false"}
    )
    assert sorted(kinds) == ["missing", "missing", "missing", "provider_missing", "provider_missing"]
    assert unrepaired == 3


async def test_on_demand(host: CountingHost, start: Start) -> None:
    """A comparison that is asked for is thorough, is counted and told as any other; a dry run is neither."""
    run = start(3600)
    await run.reconciler.now(dry_run=False)
    run.told.clear()
    stray = Allocation(
        resources={(await root(host)).uuid: {"VCPU": 1}}, project_id="p", user_id="u", consumer_type="INSTANCE"
    )
    await host.placement.put_allocation(uuid4(), stray)

    rehearsed = await run.reconciler.now(dry_run=True)
    assert (len(rehearsed.differences), run.told) == (1, [])

    repaired = await run.reconciler.now(dry_run=False)
    assert (len(repaired.differences), run.told) == (1, [["surplus"]])
    assert run.counted("repaired") == 2


async def moved(host: CountingHost) -> list[str]:
    """The allocation of a guest is given to another consumer, as large as it was."""
    (uuid,) = host.accounting._ledger.held
    allocation = await host.placement.allocation(uuid)
    assert allocation is not None
    await release(host.placement, uuid)
    await host.placement.put_allocation(uuid4(), replace(allocation, consumer_generation=None))
    return ["missing", "surplus"]


async def limited(host: CountingHost) -> list[str]:
    """A single guest may take less of the host than it could."""
    provider = await root(host)
    generation, inventories = await host.placement.inventories(provider.uuid)
    changed = inventories | {"VCPU": replace(inventories["VCPU"], max_unit=1)}
    await host.placement.set_inventories(provider.uuid, generation, changed)
    return ["inventory"]


@pytest.mark.parametrize("spoil", [moved, limited])
async def test_thorough_at_times(
    host: CountingHost,
    start: Start,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[CountingHost], Awaitable[list[str]]],
) -> None:
    """What the usual single read does not show is found by the run that is thorough; the others read once."""
    monkeypatch.setattr(reconciler_module, "_THOROUGH_EVERY", 5)
    run = start(3600)

    async def requests() -> list[str]:
        host.requests.clear()
        run.reconciler.soon()
        await soon(run.succeeded.get())
        return [method for method, _ in host.requests]

    await requests()
    uuid = await host.built()
    await host.eventually_holds(uuid, FULL_SIZE)
    await requests()
    await requests()
    kinds = await spoil(host)
    run.told.clear()

    assert (await requests(), run.told) == (["GET"], [])
    await requests()
    assert [sorted(told) for told in run.told] == [kinds]
    assert await host.held(uuid) == FULL_SIZE
    await requests()
    assert await requests() == ["GET"]


async def test_thorough_run_that_fails(host: CountingHost, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that should have been thorough, and failed, is thorough when it is tried again."""
    monkeypatch.setattr(reconciler_module, "_THOROUGH_EVERY", 3)
    run = start(3600)
    for _ in range(2):
        run.reconciler.soon()
        await soon(run.succeeded.get())
        await soon(run.asked.get())
    run.fault = HypervisorUnavailable("gone")
    run.reconciler.soon()
    await soon(run.asked.get())

    run.fault = None
    host.requests.clear()
    run.reconciler.soon()
    await soon(run.succeeded.get())

    assert len(host.requests) > 1


async def root(host: CountingHost) -> Provider:
    found = await host.placement.find_provider(host.name)
    assert found is not None
    return found


async def test_placement_away(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """While Placement is away it says so with the reason and tries again soon; after that all is well."""
    monkeypatch.setattr(reconciler_module, "_RETRY_SECONDS", 0.1)
    run = start(3600)
    run.fault = ServiceUnavailable("is away", service="placement", url="http://127.0.0.1:1")

    run.reconciler.soon()
    await soon(run.asked.get())
    await soon(run.asked.get())

    condition = run.health.conditions[Dependency.PLACEMENT]
    assert not condition.up
    assert "is away" in condition.reason
    assert run.counted("failed") >= 1
    run.fault = None
    await soon(run.succeeded.get())
    assert run.health.conditions[Dependency.PLACEMENT].up


async def test_libvirt_at_fault(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """What libvirt refuses is no fault of Placement's."""
    monkeypatch.setattr(reconciler_module, "_RETRY_SECONDS", 0.1)
    run = start(3600)
    run.fault = HypervisorError("no capabilities")

    run.reconciler.soon()
    await soon(run.asked.get())
    await soon(run.asked.get())

    assert run.health.conditions[Dependency.PLACEMENT].reason == "not connected yet"
    assert "no capabilities" in run.health.conditions[Dependency.LIBVIRT].reason
    run.fault = None
    await soon(run.succeeded.get())
    assert run.health.conditions[Dependency.LIBVIRT].up


async def test_libvirt_is_not_said_to_be_up(host: CountingHost, start: Start) -> None:
    """A comparison that libvirt's loss ends says nothing of a libvirt that is up, whatever was read of it before."""
    await host.libvirt.stop()
    run = start(3600)
    changes: list[bool] = []
    run.health._on_change = lambda: changes.append(run.health.conditions[Dependency.LIBVIRT].up)

    for _ in range(2):
        run.reconciler.soon()
        await soon(run.asked.get())
    run.fault = HypervisorUnavailable("gone")
    run.reconciler.soon()
    await soon(run.asked.get())

    assert True not in changes
    assert run.succeeded.empty()


async def test_libvirt_away(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lost libvirt is not asked again and again: its return asks for the next comparison."""
    monkeypatch.setattr(reconciler_module, "_RETRY_SECONDS", 0.01)
    run = start(3600)
    run.fault = HypervisorUnavailable("gone")

    run.reconciler.soon()
    await soon(run.asked.get())
    await asyncio.sleep(0.1)

    assert run.asked.empty()


async def test_old_records_are_forgotten(host: CountingHost, start: Start) -> None:
    """The record of an instance that was deleted a day ago goes; that of an hour ago stays."""
    now = datetime.now(UTC)
    old = record(State.DELETED).model_copy(update={"updated_at": now - timedelta(hours=25)})
    young = record(State.DELETED).model_copy(update={"updated_at": now - timedelta(hours=1)})
    for deleted in (old, young):
        host.store.save(deleted)
    run = start(3600)

    for _ in range(2):  # the first may still be forgetting when it resumes
        run.reconciler.soon()
        await soon(run.succeeded.get())

    assert host.store.get(old.uuid) is None
    assert not host.store.files(old.uuid).directory.exists()
    assert host.store.get(young.uuid) is not None
    assert host.store.get(uuid4()) is None
