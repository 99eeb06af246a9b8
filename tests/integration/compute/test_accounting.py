"""What Placement counts of a host follows what libvirt runs there."""

import asyncio
from dataclasses import replace
from uuid import UUID, uuid4

import aiohttp
import pytest

from sev_agent.compute import postponed as postponed_module
from sev_agent.compute.accounting import NotRegistered
from sev_agent.compute.allocation import ProviderTree
from sev_agent.compute.drift import Comparison
from sev_agent.compute.holding import managed
from sev_agent.compute.record import State
from sev_agent.compute.record_store import JournalFailed
from sev_agent.openstack.placement import Allocation, Full, Inventory, Provider
from sev_agent.sev.generation import NODE_TYPE_TRAIT, RESOURCE_CLASS, Generation
from sev_agent.sev.holdings import ConsumerType
from tests.integration.compute.conftest import FULL_SIZE, SLOTS, UNMANAGED_SIZE, CountingHost, resources
from tests.libvirt_host import PATIENCE
from tests.releases import release
from tests.requests import record


async def registered(host: CountingHost) -> tuple[Provider, Provider]:
    """The root and the child, once Placement has them and a comparison found nothing to do."""
    await host.reconcile()
    assert (await host.reconcile()).is_clean
    root = await host.placement.find_provider(host.name)
    child = await host.placement.find_provider(f"{host.name}_amd_sev")
    assert root is not None
    assert child is not None
    return root, child


async def test_registration(host: CountingHost) -> None:
    """A host registers its root and a child with slots, each with its trait and its inventory."""
    assert not host.accounting.is_registered
    outcome = await host.reconcile()

    root, child = await registered(host)
    assert outcome.inventory_changed
    assert host.accounting.is_registered
    assert child.parent == root.uuid
    assert (await host.placement.inventories(root.uuid))[1] == resources().root
    assert (await host.placement.inventories(child.uuid))[1] == {RESOURCE_CLASS: Inventory(total=SLOTS, max_unit=1)}
    assert NODE_TYPE_TRAIT in (await host.placement.traits(root.uuid))[1]
    assert (await host.placement.traits(child.uuid))[1] == {Generation.SEV.trait}


async def test_registering_again(host: CountingHost) -> None:
    """The second comparison only reads, the third reads once."""
    await host.reconcile()

    second = await host.requests_of(host.reconcile)
    third = await host.requests_of(host.reconcile)

    assert set(second) == {"GET"}
    assert third == ["GET"]


async def test_nothing_changed_with_guests(host: CountingHost) -> None:
    """With guests that run, a comparison that finds nothing new costs one read, however many they are."""
    await registered(host)
    for _ in range(SLOTS):
        await host.built()
    await host.reconcile()
    assert (await host.reconcile()).is_clean

    assert await host.requests_of(host.reconcile) == ["GET"]


async def test_claim_before_registration(host: CountingHost) -> None:
    """Without a provider nothing can be claimed, and the error says where to look."""
    with pytest.raises(NotRegistered, match="/readyz"):
        await host.accounting.claim(record(State.BUILDING))


async def test_claim_and_release(host: CountingHost) -> None:
    """A claim takes all of a guest's size and a slot in one request, a release gives all of it back."""
    await registered(host)
    claimed = record(State.BUILDING)

    methods = await host.requests_of(lambda: host.accounting.claim(claimed))

    assert methods == ["PUT"]
    assert await host.held(claimed.uuid) == FULL_SIZE
    assert host.accounting.slots_used() == [(("amd-sev",), 1.0)]
    await host.accounting.release(claimed.uuid)
    assert await host.held(claimed.uuid) == {}
    assert host.accounting.slots_used() == [(("amd-sev",), 0.0)]


async def test_full(host: CountingHost) -> None:
    """The claim after the last slot is refused with one request, and takes nothing."""
    await registered(host)
    for _ in range(SLOTS):
        await host.accounting.claim(record(State.BUILDING))
    refused = record(State.BUILDING)
    host.requests.clear()

    with pytest.raises(Full):
        await host.accounting.claim(refused)

    assert host.requests == [("PUT", 409)]
    assert await host.held(refused.uuid) == {}


async def test_claims_at_once(host: CountingHost) -> None:
    """Ten claims at once for two slots: two succeed, eight are full, none is lost to a conflict."""
    await registered(host)

    outcomes = await asyncio.gather(
        *(host.accounting.claim(record(State.BUILDING)) for _ in range(10)), return_exceptions=True
    )

    assert outcomes.count(None) == SLOTS
    assert all(isinstance(outcome, Full) for outcome in outcomes if outcome is not None)


async def test_claim_of_a_claimed(host: CountingHost) -> None:
    """What the consumer holds already, as after a crash, is replaced; a claim that is right is not written again."""
    root, _ = await registered(host)
    claimed = record(State.BUILDING)
    stale = Allocation(
        resources={root.uuid: {"VCPU": 1}}, project_id="project", user_id="user", consumer_type="INSTANCE"
    )
    await host.placement.put_allocation(claimed.uuid, stale)

    await host.accounting.claim(claimed)

    assert await host.held(claimed.uuid) == FULL_SIZE
    assert await host.requests_of(lambda: host.accounting.claim(claimed)) == ["GET"]


async def test_stop_and_start(host: CountingHost) -> None:
    """A guest that stops behind the daemon's back keeps only its disk, and takes its slot again when it starts."""
    await registered(host)
    uuid = await host.built()
    await host.eventually_holds(uuid, FULL_SIZE)

    await host.libvirt.domains.destroy(uuid)
    await host.eventually_holds(uuid, {"DISK_GB": 1})
    assert host.seen[uuid] is False
    await host.libvirt.domains.start(uuid)
    await host.eventually_holds(uuid, FULL_SIZE)
    assert host.seen[uuid] is True


async def test_undefined(host: CountingHost) -> None:
    """An instance whose domain somebody removed keeps only its disk, until it is deleted."""
    await registered(host)
    uuid = await host.built()

    await host.libvirt.domains.destroy(uuid)
    await host.libvirt.domains.undefine(uuid)

    await host.eventually_holds(uuid, {"DISK_GB": 1})


async def test_unmanaged_guest(host: CountingHost) -> None:
    """An encrypted guest that somebody else starts takes a slot as UNMANAGED, and gives it back when it ends."""
    await registered(host)

    uuid = await host.start_guest(ours=False)

    await host.eventually_holds(uuid, UNMANAGED_SIZE)
    allocation = await host.placement.allocation(uuid)
    assert allocation is not None
    assert allocation.consumer_type == ConsumerType.UNMANAGED
    await host.libvirt.domains.destroy(uuid)
    await host.eventually_holds(uuid, {})


async def test_unencrypted_guest(host: CountingHost) -> None:
    """A guest without encryption holds nothing."""
    await registered(host)

    plain = await host.start_guest(ours=False, security="")
    encrypted = await host.start_guest(ours=False)

    await host.eventually_holds(encrypted, UNMANAGED_SIZE)
    assert await host.held(plain) == {}


async def test_guests_of_before(host: CountingHost) -> None:
    """A daemon that starts beside running guests finds them all by its first comparison, and counts them as used."""
    uuid = uuid4()
    await host.start_guest(uuid)
    host.store.save(record(State.STOPPED, uuid))
    unmanaged = await host.start_guest(ours=False)

    await host.reconcile()

    assert await host.held(uuid) == FULL_SIZE
    assert await host.held(unmanaged) == UNMANAGED_SIZE
    assert host.seen[uuid] is True
    assert host.accounting.slots_used() == [(("amd-sev",), 2.0)]


async def test_used_slots_after_a_restart(host: CountingHost) -> None:
    """What Placement counts rightly already is not written, and still is known as used."""
    await registered(host)
    await host.built()
    await host.reconcile()
    host.accounting._ledger._held.clear()
    host.accounting._verified = None

    methods = await host.requests_of(host.reconcile)

    assert set(methods) == {"GET"}
    assert host.accounting.slots_used() == [(("amd-sev",), 1.0)]


@pytest.mark.parametrize("way", ["delete", "put"])
async def test_allocation_removed_by_hand(
    host: CountingHost, session: aiohttp.ClientSession, placement_url: str, way: str
) -> None:
    """An allocation that somebody took away, in either of Placement's ways, is back after the next comparison."""
    await registered(host)
    uuid = await host.built()
    await host.reconcile()
    assert (await host.reconcile()).is_clean
    if way == "delete":
        # This one raises no provider's generation.
        await session.delete(f"{placement_url}/allocations/{uuid}", headers={"X-Auth-Token": "admin"})
    else:
        await release(host.placement, uuid)

    outcome = await host.reconcile()

    assert [difference.consumer for difference in outcome.differences] == [uuid]
    assert await host.held(uuid) == FULL_SIZE


async def test_allocation_added_by_hand(host: CountingHost) -> None:
    """An allocation for nothing that runs here is gone after the next comparison, also one of a slot alone."""
    _, child = await registered(host)
    assert (await host.reconcile()).is_clean
    stray = uuid4()
    added = Allocation(
        resources={child.uuid: {RESOURCE_CLASS: 1}}, project_id="p", user_id="u", consumer_type="INSTANCE"
    )
    await host.placement.put_allocation(stray, added)

    outcome = await host.reconcile()

    assert [difference.consumer for difference in outcome.differences] == [stray]
    assert await host.held(stray) == {}


async def test_wrong_size(host: CountingHost) -> None:
    """An allocation of another size than the flavor's is corrected."""
    await registered(host)
    uuid = await host.built()
    await host.reconcile()
    allocation = await host.placement.allocation(uuid)
    assert allocation is not None
    halved = {
        provider: dict(amounts) | ({"VCPU": 1} if "VCPU" in amounts else {})
        for provider, amounts in allocation.resources.items()
    }
    await host.placement.put_allocation(uuid, replace(allocation, resources=halved))

    await host.reconcile()

    assert await host.held(uuid) == FULL_SIZE


async def test_inventory_and_traits_by_hand(host: CountingHost) -> None:
    """A total and a trait that somebody changed are as they should be after the next comparison."""
    _, child = await registered(host)
    assert (await host.reconcile()).is_clean
    generation, _ = await host.placement.inventories(child.uuid)
    generation = await host.placement.set_inventories(
        child.uuid, generation, {RESOURCE_CLASS: Inventory(total=99, max_unit=1)}
    )
    await host.placement.set_traits(child.uuid, generation, set())

    outcome = await host.reconcile()

    assert outcome.inventory_changed
    assert (await host.placement.inventories(child.uuid))[1][RESOURCE_CLASS].total == SLOTS
    assert (await host.placement.traits(child.uuid))[1] == {Generation.SEV.trait}


async def test_more_slots(host: CountingHost) -> None:
    """A limit that was raised is written while guests hold slots."""
    await registered(host)
    await host.built()

    outcome = await host.reconcile(resources(slots=5))

    child = await host.placement.find_provider(f"{host.name}_amd_sev")
    assert child is not None
    assert outcome.inventory_changed
    assert (await host.placement.inventories(child.uuid))[1][RESOURCE_CLASS].total == 5


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


async def test_every_comparison_observes(host: CountingHost) -> None:
    """A comparison tells of every instance whether its guest runs, also where Placement needs no change."""
    await registered(host)
    uuid = await host.built()
    await host.reconcile()
    host.seen.clear()

    assert (await host.reconcile()).is_clean

    assert host.seen == {uuid: True}


async def test_full_state_disk(host: CountingHost) -> None:
    """Where no record can be written, slots are counted by libvirt all the same, and the rest is told later."""
    await registered(host)
    uuid = await host.built()
    await host.eventually_holds(uuid, FULL_SIZE)
    note = host.on_seen

    async def full(_: UUID, __: bool) -> None:  # noqa: FBT001 - the callback's own
        raise JournalFailed("the record cannot be written: No space left on device")

    host.on_seen = full
    await host.libvirt.domains.destroy(uuid)
    await host.eventually_holds(uuid, {"DISK_GB": 1})
    assert (await host.reconcile(thorough=True)).is_clean
    assert host.seen.get(uuid) is not False

    host.on_seen = note
    await host.reconcile()
    assert host.seen[uuid] is False


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


async def test_guest_beyond_the_slots(host: CountingHost) -> None:
    """A guest that Placement has no slot for is told of, and keeps nothing else from being repaired."""
    await registered(host)
    for _ in range(SLOTS):
        await host.built()
    beyond = await host.start_guest(ours=False)
    root = await host.placement.find_provider(host.name)
    assert root is not None
    stray = uuid4()
    await host.placement.put_allocation(
        stray,
        Allocation(resources={root.uuid: {"VCPU": 1}}, project_id="p", user_id="u", consumer_type="INSTANCE"),
    )

    outcome = await host.reconcile()

    assert isinstance(outcome.unrepaired[beyond], Full)
    assert await host.held(stray) == {}
    assert not (await host.reconcile()).is_clean


async def test_event_while_another_cannot_be_written(host: CountingHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest that is refused holds up no other guest's event."""
    monkeypatch.setattr(postponed_module, "_RETRY_SECONDS", 3600)
    await registered(host)
    first = await host.built()
    await host.built()
    await host.start_guest(ours=False)

    await host.libvirt.domains.destroy(first)

    await host.eventually_holds(first, {"DISK_GB": 1})


async def test_refused_guest_gets_the_slot_that_comes_free(host: CountingHost) -> None:
    """A guest that had no slot is counted as soon as another's guest ends."""
    await registered(host)
    first = await host.built()
    await host.built()
    beyond = await host.start_guest(ours=False)
    await host.libvirt.domains.destroy(first)

    await host.eventually_holds(beyond, UNMANAGED_SIZE)


async def test_refused_guest_gets_the_slot_that_a_deletion_gives_back(host: CountingHost) -> None:
    """What an operation gives back by itself is room too."""
    await registered(host)
    first = await host.built()
    await host.built()
    beyond = await host.start_guest(ours=False)
    async with asyncio.timeout(PATIENCE):
        while ("PUT", 409) not in host.requests:  # noqa: ASYNC110 - a refusal rings no bell
            await asyncio.sleep(0.01)
    host.in_flight.add(first)
    await host.accounting.release(first)

    await host.eventually_holds(beyond, UNMANAGED_SIZE)


async def test_deleted_provider(host: CountingHost) -> None:
    """A host whose providers somebody deleted registers again."""
    root, child = await registered(host)
    await host.placement.delete_provider(child.uuid)
    await host.placement.delete_provider(root.uuid)

    outcome = await host.reconcile()

    assert outcome.inventory_changed
    assert await host.placement.find_provider(f"{host.name}_amd_sev") is not None


async def test_conflicting_claims_are_retried(host: CountingHost) -> None:
    """Claims that collide with writes to the same providers all succeed."""
    await registered(host)
    _, child = await registered(host)

    async def disturb() -> None:
        for total in (3, 4, 5, SLOTS):
            generation, _ = await host.placement.inventories(child.uuid)
            await host.placement.set_inventories(
                child.uuid, generation, {RESOURCE_CLASS: Inventory(total=total, max_unit=1)}
            )

    claimed = [record(State.BUILDING) for _ in range(SLOTS)]
    outcomes = await asyncio.gather(*(host.accounting.claim(one) for one in claimed), disturb(), return_exceptions=True)

    assert outcomes[:SLOTS] == [None] * SLOTS
