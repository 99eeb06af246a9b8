"""What begins or ends while a comparison looks is neither lost nor undone by it."""

import asyncio
from collections.abc import Collection, Sequence
from uuid import UUID, uuid4

import pytest

from sev_agent.compute import postponed as postponed_module
from sev_agent.compute.allocation import ProviderTree
from sev_agent.compute.drift import Comparison
from sev_agent.compute.holding import managed
from sev_agent.compute.record import State
from sev_agent.hypervisor.domains import Guest
from sev_agent.hypervisor.errors import HypervisorUnavailable
from sev_agent.openstack.placement import Allocation
from tests.integration.compute.conftest import FULL_SIZE, CountingHost, registered
from tests.libvirt_host import PATIENCE
from tests.releases import release
from tests.requests import record


async def test_in_flight_is_left_alone(host: CountingHost) -> None:
    """A claim of a build that is under way is no surplus, and its guest no stranger."""
    await registered(host)
    building = record(State.BUILDING)
    host.store.save(building)
    host.in_flight.add(building.uuid)
    await host.accounting.claim(building)
    await host.start_guest(building.uuid)

    outcome = await host.reconcile()

    assert outcome.is_clean
    assert await host.held(building.uuid) == FULL_SIZE
    assert building.uuid not in host.seen
    assert host.accounting.slots_used() == [(("amd-sev",), 1.0)]


@pytest.mark.parametrize("look", ["guests", "guests_among"])
async def test_operation_since_the_look(host: CountingHost, monkeypatch: pytest.MonkeyPatch, look: str) -> None:
    """A start that begins and ends after a look saw the guest off is not undone by what follows from that look."""
    await registered(host)
    uuid = await host.built()
    await host.libvirt.domains.destroy(uuid)
    await host.eventually_holds(uuid, {"DISK_GB": 1})
    stopped = host.store.get(uuid)
    assert stopped is not None
    told: list[bool] = []
    looking = getattr(host.libvirt.domains, look)

    async def note(_: UUID, runs: bool) -> None:  # noqa: FBT001 - the callback's own
        told.append(runs)

    async def look_before_the_start(*given: object) -> object:
        monkeypatch.setattr(host.libvirt.domains, look, looking)
        found = await looking(*given)
        host.in_flight.add(uuid)
        await host.accounting._ledger.write(uuid, full_size, tree)
        await host.libvirt.domains.start(uuid)
        host.in_flight.discard(uuid)
        host.accounting.mark(uuid)
        for _ in range(3):
            await asyncio.sleep(0)  # whoever waits for marks has its turn
        return found

    tree = host.accounting._known_tree()
    full_size = managed(stopped, tree, host.accounting._terms, runs=True)
    host.on_seen = note
    monkeypatch.setattr(host.libvirt.domains, look, look_before_the_start)
    if look == "guests":
        await host.reconcile()
    else:
        host.accounting.mark(uuid)
    async with asyncio.timeout(PATIENCE):
        while not told:  # noqa: ASYNC110 - nothing rings when all is settled
            await asyncio.sleep(0.01)

    assert set(told) == {True}
    assert await host.held(uuid) == FULL_SIZE


async def test_operation_accepted_while_a_record_is_written(host: CountingHost) -> None:
    """A start that is accepted while the record learns that the guest is off finds nothing given back."""
    await registered(host)
    uuid = await host.built()
    await host.eventually_holds(uuid, FULL_SIZE)
    told = asyncio.Event()

    async def accept(_: UUID, __: bool) -> None:  # noqa: FBT001 - the callback's own
        host.in_flight.add(uuid)
        told.set()

    host.on_seen = accept
    await host.libvirt.domains.destroy(uuid)
    async with asyncio.timeout(PATIENCE):
        await told.wait()
    async with host.accounting._settling:
        assert await host.held(uuid) == FULL_SIZE


async def test_event_of_a_surplus_that_a_comparison_has_found(
    host: CountingHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A surplus that is left to an event's own look, since it came just then, is given back by that."""
    await registered(host)
    stray = uuid4()
    root = await host.placement.find_provider(host.name)
    assert root is not None
    surplus = Allocation(resources={root.uuid: {"VCPU": 1}}, project_id="p", user_id="u", consumer_type="INSTANCE")
    await host.placement.put_allocation(stray, surplus)
    remember = host.accounting._remember

    def remember_and_hear(compared: Comparison) -> None:
        remember(compared)
        host.accounting.mark(stray)

    monkeypatch.setattr(host.accounting, "_remember", remember_and_hear)
    await host.reconcile()

    await host.eventually_holds(stray, {})


async def test_claim_during_the_removal_of_a_surplus(host: CountingHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """A build that claims while a comparison gives back what stood under its UUID keeps its claim."""
    root, _ = await registered(host)
    building = record(State.BUILDING)
    stray = Allocation(resources={root.uuid: {"VCPU": 1}}, project_id="p", user_id="u", consumer_type="INSTANCE")
    await host.placement.put_allocation(building.uuid, stray)
    releasing, go_on = asyncio.Event(), asyncio.Event()
    release = host.accounting._ledger.release

    async def slow_release(consumer: UUID, tree: ProviderTree) -> bool:
        releasing.set()
        await go_on.wait()
        return await release(consumer, tree)

    monkeypatch.setattr(host.accounting._ledger, "release", slow_release)
    comparing = asyncio.create_task(host.reconcile())
    await releasing.wait()
    host.in_flight.add(building.uuid)
    claiming = asyncio.create_task(host.accounting.claim(building))
    await asyncio.wait({claiming}, timeout=0.3)
    go_on.set()
    await asyncio.gather(comparing, claiming)

    assert await host.held(building.uuid) == FULL_SIZE


async def test_build_that_ends_during_a_comparison(host: CountingHost) -> None:
    """An instance that was claimed while Placement was being read is no difference."""
    await registered(host)
    host.accounting._verified = None
    built_meanwhile: list[UUID] = []
    read = host.accounting._ledger.read

    async def read_late(tree: object) -> object:
        built_meanwhile.append(await host.built())
        return await read(tree)  # type: ignore[arg-type]

    host.accounting._ledger.read = read_late  # type: ignore[method-assign, assignment]
    outcome = await host.reconcile()

    assert outcome.is_clean
    assert await host.held(built_meanwhile[0]) == FULL_SIZE


async def test_event_while_libvirt_cannot_be_asked(host: CountingHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """An event that comes just as libvirt does not answer is not forgotten."""
    monkeypatch.setattr(postponed_module, "_RETRY_SECONDS", 0.05)
    await registered(host)
    uuid = await host.built()
    await host.eventually_holds(uuid, FULL_SIZE)
    asked = asyncio.Event()

    async def away(*_: object) -> None:
        asked.set()
        raise HypervisorUnavailable("gone")

    with monkeypatch.context() as broken:
        broken.setattr(host.libvirt.domains, "guests_among", away)
        await host.libvirt.domains.destroy(uuid)
        async with asyncio.timeout(PATIENCE):
            await asked.wait()

    await host.eventually_holds(uuid, {"DISK_GB": 1})


async def test_event_between_the_look_and_the_write(host: CountingHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest that ends after a comparison saw it run, and before it writes that, does not stay counted."""
    await registered(host)
    uuid = await host.built()
    await host.eventually_holds(uuid, FULL_SIZE)
    await release(host.placement, uuid)
    looking = host.libvirt.domains.guests_among

    async def look_before_the_end(among: Collection[UUID]) -> Sequence[Guest]:
        monkeypatch.setattr(host.libvirt.domains, "guests_among", looking)
        found = await looking(among)
        await host.libvirt.domains.destroy(uuid)
        await asyncio.sleep(0.3)  # whoever is not kept from it settles the event now
        return found

    monkeypatch.setattr(host.libvirt.domains, "guests_among", look_before_the_end)
    await host.reconcile()

    await host.eventually_holds(uuid, {"DISK_GB": 1})
