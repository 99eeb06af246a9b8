"""Every way in which Placement can come to differ from a host: found, told beforehand by a dry run, repaired."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from uuid import UUID, uuid4

import pytest

from sev_agent.compute.allocation import Resources
from sev_agent.compute.drift import Kind, Reconciliation
from sev_agent.compute.record import State
from sev_agent.openstack.exchange import ServiceUnavailable
from sev_agent.openstack.placement import Allocation, Inventory
from sev_agent.schema import Scheduling
from sev_agent.sev.generation import RESOURCE_CLASS, Generation
from sev_agent.sev.holdings import ConsumerType
from tests.integration.compute.conftest import (
    FULL_SIZE,
    OVERHEAD,
    SLOTS,
    UNMANAGED_SIZE,
    CountingHost,
    MakeHost,
    resources,
)
from tests.releases import release
from tests.requests import record


async def settled(host: CountingHost) -> UUID:
    """One instance that runs, and nothing that differs."""
    await host.reconcile()
    uuid = await host.built()
    await host.reconcile()
    assert (await host.reconcile(thorough=True)).is_clean
    return uuid


async def provider(host: CountingHost, suffix: str = "") -> UUID:
    found = await host.placement.find_provider(f"{host.name}{suffix}")
    assert found is not None
    return found.uuid


async def put(host: CountingHost, uuid: UUID, held: dict[UUID, Resources], kind: str = "INSTANCE") -> None:
    """What somebody writes by hand."""
    present = await host.placement.allocation(uuid)
    generation = present.consumer_generation if present else None
    allocation = Allocation(
        resources=held, project_id="p", user_id="u", consumer_type=kind, consumer_generation=generation
    )
    await host.placement.put_allocation(uuid, allocation)


async def missing(host: CountingHost, uuid: UUID) -> UUID:
    await release(host.placement, uuid)
    return uuid


async def surplus(host: CountingHost, _: UUID) -> UUID:
    leaked = uuid4()
    await put(host, leaked, {await provider(host, "_amd_sev"): {RESOURCE_CLASS: 1}})
    return leaked


async def wrong_size(host: CountingHost, uuid: UUID) -> UUID:
    held = await host.placement.allocation(uuid)
    assert held is not None
    root = await provider(host)
    await put(host, uuid, dict(held.resources) | {root: {"VCPU": 1, "MEMORY_MB": 64, "DISK_GB": 2}})
    return uuid


async def doubled(host: CountingHost, uuid: UUID) -> UUID:
    held = await host.placement.allocation(uuid)
    assert held is not None
    await put(host, uuid, dict(held.resources) | {await provider(host, "_amd_sev_es"): {RESOURCE_CLASS: 1}})
    return uuid


@pytest.mark.parametrize(
    ("spoil", "kind"),
    [
        (missing, Kind.MISSING),
        (surplus, Kind.SURPLUS),
        (wrong_size, Kind.WRONG_SIZE),
        (doubled, Kind.DOUBLED),
    ],
)
async def test_allocations(
    host: CountingHost, spoil: Callable[[CountingHost, UUID], Awaitable[UUID]], kind: Kind
) -> None:
    """A dry run tells of the difference and changes nothing; the next run repairs it; then all is clean."""
    both = resources(generations=[Generation.SEV, Generation.SEV_ES])
    await host.reconcile(both)
    uuid = await host.built()
    await host.reconcile(both)
    at_fault = await spoil(host, uuid)
    spoilt = await host.placement.allocation(at_fault)

    methods = await host.requests_of(lambda: host.reconcile(both, dry_run=True))
    rehearsed = await host.reconcile(both, dry_run=True)

    assert set(methods) == {"GET"}
    assert [(found.consumer, found.kind) for found in rehearsed.differences] == [(at_fault, kind)]
    assert await host.placement.allocation(at_fault) == spoilt
    repaired = await host.reconcile(both)
    assert repaired.differences == rehearsed.differences
    assert await host.held(uuid) == FULL_SIZE
    assert at_fault == uuid or await host.held(at_fault) == {}
    assert (await host.reconcile(both, thorough=True)).is_clean


async def lost_traits(host: CountingHost) -> None:
    child = await provider(host, "_amd_sev")
    generation, _ = await host.placement.traits(child)
    await host.placement.set_traits(child, generation, set())


async def wrong_inventory(host: CountingHost) -> None:
    root = await provider(host)
    generation, found = await host.placement.inventories(root)
    changed = found | {"MEMORY_MB": Inventory(total=4096, max_unit=4096, allocation_ratio=1.5)}
    await host.placement.set_inventories(root, generation, changed)


async def deleted_provider(host: CountingHost) -> None:
    await host.placement.delete_provider(await provider(host, "_amd_sev"))


@pytest.mark.parametrize(
    ("spoil", "kind"),
    [
        (lost_traits, Kind.TRAITS),
        (wrong_inventory, Kind.INVENTORY),
        (deleted_provider, Kind.PROVIDER_MISSING),
    ],
)
async def test_providers(host: CountingHost, spoil: Callable[[CountingHost], Awaitable[None]], kind: Kind) -> None:
    """What is wrong with a provider is told by a dry run, and repaired by the next run, unasked."""
    await host.reconcile()
    assert (await host.reconcile()).is_clean
    await spoil(host)

    rehearsed = await host.reconcile(dry_run=True)
    repaired = await host.reconcile()

    assert [found.kind for found in rehearsed.providers] == [kind]
    assert repaired.providers == rehearsed.providers
    assert (await host.reconcile(thorough=True)).is_clean
    assert (await host.placement.traits(await provider(host, "_amd_sev")))[1] == {Generation.SEV.trait}


async def test_repair_that_is_cut_short(host: CountingHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a thorough comparison found and could not write is not believed done: the next one, a cheap one, repairs it.

    One guest's allocation stands under another consumer: what is used of each provider is as it should be.
    """
    uuid = await settled(host)
    allocation = await host.placement.allocation(uuid)
    assert allocation is not None
    await release(host.placement, uuid)
    stray = uuid4()
    await host.placement.put_allocation(stray, replace(allocation, consumer_generation=None))

    async def away(*_: object) -> None:
        raise ServiceUnavailable("is away", service="placement", url="http://127.0.0.1:1")

    with monkeypatch.context() as broken:
        broken.setattr(host.placement, "put_allocation", away)
        with pytest.raises(ServiceUnavailable):
            await host.reconcile(thorough=True)

    await host.reconcile()

    assert (await host.held(uuid), await host.held(stray)) == (FULL_SIZE, {})


async def test_dry_run_tells_no_record(host: CountingHost) -> None:
    """A dry run does not even note that a guest runs."""
    await host.reconcile()
    uuid = uuid4()
    host.in_flight.add(uuid)  # its event is left alone
    await host.start_guest(uuid)
    host.store.save(record(State.STOPPED, uuid))
    await asyncio.sleep(0.1)
    host.in_flight.discard(uuid)
    host.seen.clear()

    outcome = await host.reconcile(dry_run=True)

    assert [found.consumer for found in outcome.differences] == [uuid]
    assert host.seen == {}


async def test_scheduled_claim_waits_for_its_request(hosts: MakeHost) -> None:
    """The claim of a scheduler is left alone for its grace; the request that arrives makes it an instance's."""
    host = await hosts(claim_grace=3600)
    await host.reconcile()
    asked = record(State.BUILDING)
    root, child = await provider(host), await provider(host, "_amd_sev")
    claimed: dict[UUID, Resources] = {
        root: {"VCPU": 2, "MEMORY_MB": 64 + OVERHEAD, "DISK_GB": 1},
        child: {RESOURCE_CLASS: 1},
    }
    await put(host, asked.uuid, claimed, ConsumerType.SCHEDULED)

    assert (await host.reconcile()).is_clean
    assert (await host.reconcile()).is_clean
    sent = asked.with_(scheduling=Scheduling())
    assert await host.requests_of(lambda: host.accounting.claim(sent)) == ["GET", "PUT"]

    allocation = await host.placement.allocation(asked.uuid)
    assert allocation is not None
    assert allocation.consumer_type == ConsumerType.INSTANCE
    assert allocation.resources == claimed


async def test_scheduled_claim_that_leaked(hosts: MakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """When its grace is over and no request came, it is a leak, though nothing else changed."""
    now = 1000.0
    monkeypatch.setattr("sev_agent.compute.strangers.time.monotonic", lambda: now)
    host = await hosts(claim_grace=60)
    await host.reconcile()
    leaked = uuid4()
    await put(host, leaked, {await provider(host, "_amd_sev"): {RESOURCE_CLASS: 1}}, ConsumerType.SCHEDULED)
    assert (await host.reconcile()).is_clean
    now = 1059.0
    assert (await host.reconcile()).is_clean

    now = 1061.0
    outcome = await host.reconcile()

    assert [found.consumer for found in outcome.differences] == [leaked]
    assert await host.held(leaked) == {}


async def test_other_hosts_keep_theirs(host: CountingHost) -> None:
    """What a consumer holds of another host stays, when this one claims for it, corrects it, and releases it."""
    await host.reconcile()
    there = await host.placement.create_provider(f"other-{uuid4()}", uuid=uuid4())
    await host.placement.set_inventories(there.uuid, there.generation, {"PCPU": Inventory(total=8, max_unit=8)})
    other, uuid = {there.uuid: {"PCPU": 3}}, uuid4()
    await put(host, uuid, dict(other))

    await host.built(uuid)
    await host.eventually_holds(uuid, FULL_SIZE | {"PCPU": 3})
    await host.libvirt.domains.destroy(uuid)
    await host.eventually_holds(uuid, {"DISK_GB": 1, "PCPU": 3})
    await host.accounting.release(uuid)

    held = await host.placement.allocation(uuid)
    assert held is not None
    assert held.resources == other


async def test_event_during_a_comparison(host: CountingHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest that stops while Placement is being read is not counted as running by that, also when it starts again."""
    uuid = await settled(host)
    read = host.accounting._ledger.read

    async def read_and_wait(tree: object) -> object:
        found = await read(tree)  # type: ignore[arg-type]
        await host.libvirt.domains.destroy(uuid)
        await host.eventually_holds(uuid, {"DISK_GB": 1})
        return found

    with monkeypatch.context() as patch:
        patch.setattr(host.accounting._ledger, "read", read_and_wait)
        outcome = await host.reconcile(thorough=True)

    assert outcome.differences == ()
    assert await host.held(uuid) == {"DISK_GB": 1}
    await host.libvirt.domains.start(uuid)
    await host.eventually_holds(uuid, FULL_SIZE)


async def test_events_during_comparisons(host: CountingHost) -> None:
    """Guests that stop and start while comparisons follow one another end up counted as they are."""
    given = resources(slots=10)
    await host.reconcile(given)
    uuids = [await host.start_guest(ours=False) for _ in range(8)]

    async def flap(uuid: UUID, times: int) -> None:
        for _ in range(times):
            await host.libvirt.domains.destroy(uuid)
            await host.libvirt.domains.start(uuid)
        if times % 2:
            await host.libvirt.domains.destroy(uuid)

    async def compare() -> Reconciliation:
        for _ in range(5):
            outcome = await host.reconcile(given, thorough=True)
        return outcome

    await asyncio.gather(*(flap(uuid, 2 + n % 2) for n, uuid in enumerate(uuids)), compare())

    for n, uuid in enumerate(uuids):
        await host.eventually_holds(uuid, {} if n % 2 else UNMANAGED_SIZE)
    await host.reconcile(given)
    assert (await host.reconcile(given, thorough=True)).is_clean


async def test_disk_is_given_out(host: CountingHost) -> None:
    """A host without free disk still needs one read where nothing changed."""
    await host.reconcile(resources(disk=1))
    await host.built()
    for _ in range(5):
        await host.reconcile(resources(disk=1))

    assert await host.requests_of(lambda: host.reconcile(resources(disk=1))) == ["GET"]


async def test_memory_has_a_reserve_and_no_ratio(host: CountingHost) -> None:
    """Guests with their overhead cannot take more memory than there is, less the reserve."""
    given = resources(slots=10)
    memory = Inventory(total=3 * (64 + OVERHEAD) + 511, reserved=512, max_unit=4096)
    await host.reconcile(replace(given, root=dict(given.root) | {"MEMORY_MB": memory}))

    outcomes = await asyncio.gather(
        *(host.accounting.claim(record(State.BUILDING)) for _ in range(4)), return_exceptions=True
    )

    assert outcomes.count(None) == 2
    assert SLOTS < 10
