"""What Placement counts of a host follows what libvirt runs there."""

from uuid import UUID, uuid4

from sev_agent.compute.record import State
from sev_agent.compute.record_store import JournalFailed
from sev_agent.openstack.placement import Inventory
from sev_agent.sev.generation import NODE_TYPE_TRAIT, RESOURCE_CLASS, Generation
from sev_agent.sev.holdings import ConsumerType
from tests.integration.compute.conftest import FULL_SIZE, SLOTS, UNMANAGED_SIZE, CountingHost, registered, resources
from tests.requests import record


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
