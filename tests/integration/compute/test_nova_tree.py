"""Beside Nova: its tree in a real Placement stays Nova's, whatever this agent does there."""

from uuid import uuid4

import aiohttp
import pytest

from sev_agent.compute.inventory import HostResources
from sev_agent.compute.nova_tree import NovaTreeMissing
from sev_agent.compute.record import State
from sev_agent.openstack.placement import Allocation, Full, Placement
from sev_agent.sev.generation import NODE_TYPE_TRAIT, RESOURCE_CLASS, Generation
from sev_agent.sev.holdings import ConsumerType
from tests.integration.compute.conftest import FULL_SIZE, UNMANAGED_SIZE, CountingHost, MakeHost, resources
from tests.integration.compute.nova_layout import Nova, NovaHost
from tests.libvirt_host import SEV_ES
from tests.requests import record

NOVAS = "<metadata><n:instance xmlns:n='http://openstack.org/xmlns/libvirt/nova/1.1'/></metadata>"

BEFORE_AND_SINCE = pytest.mark.parametrize("with_children", [False, True], ids=["before-2025.2", "since-2025.2"])


@pytest.fixture
def nova(placement: Placement, session: aiohttp.ClientSession, placement_url: str) -> Nova:
    return Nova(placement, session, placement_url)


async def beside(hosts: MakeHost, nova: Nova, *, with_children: bool) -> tuple[CountingHost, NovaHost]:
    """A host on a node of Nova's, after its first comparison."""
    node = await nova.register(f"node-{uuid4()}", with_children=with_children)
    host = await hosts(node.node, mode="beside-nova", claim_grace=0.001)
    await host.reconcile()
    return host, node


async def slots_used(host: CountingHost, node: NovaHost) -> int:
    return (await host.placement.usages(node.slots))[RESOURCE_CLASS]


@BEFORE_AND_SINCE
async def test_nothing_of_novas_changes(hosts: MakeHost, nova: Nova, *, with_children: bool) -> None:
    """Through many comparisons, claims, stops and releases, all but our trait and claims is byte for byte the same."""
    node = await nova.register(f"node-{uuid4()}", with_children=with_children)
    before = await nova.everything(node)
    host = await hosts(node.node, mode="beside-nova", claim_grace=0.001)
    root = node.providers[node.node].uuid

    for round_ in range(4):
        await host.reconcile(resources(slots=1 + round_, disk=50 + round_), thorough=True)
        uuid = await host.built()
        await host.eventually_holds(uuid, FULL_SIZE)
        await host.reconcile(thorough=True)
        await host.libvirt.domains.destroy(uuid)
        await host.eventually_holds(uuid, {"DISK_GB": 1})
        await host.reconcile(HostResources(root={}, slots={}), thorough=True)
        host.store.save(record(State.DELETED, uuid))
        await host.reconcile(thorough=True)
        assert await host.held(uuid) == {}
        assert await nova.everything(node) == before

    assert NODE_TYPE_TRAIT in (await host.placement.traits(root))[1]


@BEFORE_AND_SINCE
async def test_a_day_beside_nova(hosts: MakeHost, nova: Nova, *, with_children: bool) -> None:
    """A day's comparisons with encrypted guests change nothing at all, no generation either; Nova's is as Nova made it.

    A guest of ours, one of Nova's and one of nobody's run; one comparison in each hour is thorough. Half of the day is
    spent on each layout.
    """
    node = await nova.register(f"node-{uuid4()}", with_children=with_children)
    before = await nova.everything(node)
    host = await hosts(node.node, mode="beside-nova")
    await host.reconcile()
    ours = await host.built()
    stranger = await host.start_guest(ours=False)
    await host.start_guest(node.consumers[0], ours=False, metadata=NOVAS)
    await host.eventually_holds(stranger, UNMANAGED_SIZE)
    await host.reconcile()
    settled = await nova.whole(node)

    for minute in range(12 * 60):
        assert (await host.reconcile(thorough=minute % 60 == 0)).is_clean

    assert await nova.whole(node) == settled
    assert await nova.everything(node) == before
    assert await nova.consumers(node) == {*node.consumers, ours, stranger}
    assert (await host.held(ours), await host.held(stranger)) == (FULL_SIZE, UNMANAGED_SIZE)
    assert NODE_TYPE_TRAIT in (await host.placement.traits(node.providers[node.node].uuid))[1]


@BEFORE_AND_SINCE
async def test_slots_are_one_pool(hosts: MakeHost, nova: Nova, *, with_children: bool) -> None:
    """Our claims come out of Nova's own slots, beside Nova's instances: the last one is taken once."""
    host, node = await beside(hosts, nova, with_children=with_children)
    assert await slots_used(host, node) == 1  # Nova's own

    ours = await host.built()
    await nova.launch(node)

    assert await slots_used(host, node) == 3
    held = await host.placement.allocation(ours)
    assert held is not None
    assert held.resources[node.slots][RESOURCE_CLASS] == 1
    with pytest.raises(Full):
        await host.accounting.claim(record(State.BUILDING))
    with pytest.raises(Full):
        await nova.launch(node)


@BEFORE_AND_SINCE
async def test_nothing_changed(hosts: MakeHost, nova: Nova, *, with_children: bool) -> None:
    """In an idle minute beside Nova's instances, a comparison costs one read."""
    host, _ = await beside(hosts, nova, with_children=with_children)
    await host.built()
    await host.reconcile()
    assert (await host.reconcile()).is_clean

    assert await host.requests_of(host.reconcile) == ["GET"]


async def test_generations_have_their_own_slots(hosts: MakeHost, nova: Nova) -> None:
    """A guest of SEV-ES takes a slot of Nova's child for it, and none of SEV's."""
    host, node = await beside(hosts, nova, with_children=True)
    es = node.providers[Generation.SEV_ES.provider_name(node.node)].uuid

    uuid = await host.start_guest(ours=False, security=SEV_ES)
    await host.eventually_holds(uuid, UNMANAGED_SIZE)

    assert (await host.placement.usages(es))[RESOURCE_CLASS] == 1
    assert await slots_used(host, node) == 1


@BEFORE_AND_SINCE
async def test_guests_of_nova_are_novas(hosts: MakeHost, nova: Nova, *, with_children: bool) -> None:
    """A domain that Nova made is not counted again, neither at its event nor by a comparison."""
    host, node = await beside(hosts, nova, with_children=with_children)
    before = await nova.everything(node)
    encrypted = node.consumers[0]

    await host.start_guest(encrypted, ours=False, metadata=NOVAS)
    unclaimed = await host.start_guest(ours=False, metadata=NOVAS)
    ours = await host.start_guest(ours=False)
    await host.eventually_holds(ours, UNMANAGED_SIZE)
    outcome = await host.reconcile(thorough=True)

    assert outcome.is_clean
    assert await host.held(unclaimed) == {}
    assert await nova.everything(node) == before
    await host.libvirt.domains.destroy(encrypted)
    await host.libvirt.domains.destroy(ours)
    await host.eventually_holds(ours, {})
    assert (await host.reconcile(thorough=True)).is_clean
    assert await nova.everything(node) == before


async def test_novas_consumer_without_novas_mark(hosts: MakeHost, nova: Nova) -> None:
    """A domain that lost Nova's mark, but has a consumer of Nova's, is left to Nova."""
    host, node = await beside(hosts, nova, with_children=True)
    before = await nova.everything(node)

    await host.start_guest(node.consumers[0], ours=False)
    other = await host.start_guest(ours=False)
    await host.eventually_holds(other, UNMANAGED_SIZE)
    await host.reconcile(thorough=True)
    await host.libvirt.domains.destroy(node.consumers[0])
    await host.reconcile(thorough=True)

    assert await nova.everything(node) == before


async def test_our_leaks_are_repaired(hosts: MakeHost, nova: Nova) -> None:
    """An allocation of ours for a guest that is gone is released; one of an instance that Nova just claimed stays."""
    host, node = await beside(hosts, nova, with_children=True)
    leaked, novas = uuid4(), await nova.launch(node)
    held = Allocation(
        resources={node.slots: {RESOURCE_CLASS: 1}},
        project_id="p",
        user_id="u",
        consumer_type=ConsumerType.UNMANAGED,
    )
    await host.placement.put_allocation(leaked, held)

    outcome = await host.reconcile()

    assert [found.consumer for found in outcome.differences] == [leaked]
    assert await host.held(leaked) == {}
    assert (await host.held(novas))[RESOURCE_CLASS] == 1


@BEFORE_AND_SINCE
async def test_killed_between_a_claim_and_its_undo(hosts: MakeHost, nova: Nova, *, with_children: bool) -> None:
    """What a daemon had claimed of Nova's tree as it was killed is left to the build in its journal, and given back."""
    host, node = await beside(hosts, nova, with_children=with_children)
    before = await nova.everything(node)
    building = record(State.BUILDING)
    host.in_flight.add(building.uuid)
    await host.accounting.claim(building)

    # The next life knows what is in the journal, and no more.
    host.store.save(building)
    host.accounting._ledger._held.clear()
    host.accounting._verified = None
    await host.reconcile()
    assert await host.held(building.uuid) == FULL_SIZE
    host.store.save(building.with_(state=State.FAILING))
    await host.accounting.release(building.uuid)
    host.in_flight.discard(building.uuid)

    assert (await host.reconcile(thorough=True)).is_clean
    assert await nova.consumers(node) == set(node.consumers)
    assert await nova.everything(node) == before


async def test_trait_is_given_back(hosts: MakeHost, nova: Nova) -> None:
    """Our trait is there again after somebody took it, and no other is touched."""
    host, node = await beside(hosts, nova, with_children=True)
    root = node.providers[node.node].uuid
    generation, traits = await host.placement.traits(root)
    await host.placement.set_traits(root, generation, traits - {NODE_TYPE_TRAIT} | {"CUSTOM_OPERATORS"})
    await host.reconcile()

    assert (await host.placement.traits(root))[1] == traits | {"CUSTOM_OPERATORS"}


async def test_tree_is_not_there_yet(hosts: MakeHost, nova: Nova) -> None:
    """Until Nova has registered the node nothing is claimed or made, and the reason names the node; then it works."""
    name = f"node-{uuid4()}"
    host = await hosts(name, mode="beside-nova")

    with pytest.raises(NovaTreeMissing, match=name):
        await host.reconcile()
    assert not host.accounting.is_registered
    assert await host.placement.find_provider(name) is None

    await nova.register(name, with_children=True)
    await host.reconcile()
    assert host.accounting.is_registered


async def test_nova_without_slots(hosts: MakeHost, placement: Placement) -> None:
    """A node on which Nova found no encryption offers none to us either, and says what to do."""
    name = f"node-{uuid4()}"
    await placement.create_provider(name, uuid=uuid4())
    host = await hosts(name, mode="beside-nova")

    with pytest.raises(NovaTreeMissing, match="num_memory_encrypted_guests"):
        await host.reconcile()


async def test_reshape_by_nova(hosts: MakeHost, nova: Nova) -> None:
    """When Nova moves its slots from the root to children, our claims follow."""
    host, node = await beside(hosts, nova, with_children=False)
    uuid = await host.built()
    await host.reconcile()
    root = node.providers[node.node].uuid
    name = Generation.SEV.provider_name(node.node)
    child = await host.placement.create_provider(name, uuid=uuid4(), parent=root)
    _, inventories = await host.placement.inventories(root)
    await host.placement.set_inventories(child.uuid, child.generation, {RESOURCE_CLASS: inventories[RESOURCE_CLASS]})
    # Nova's own reshape moves all allocations of the class, ours too, in one step.
    for consumer in (uuid, node.consumers[0]):
        held = await host.placement.allocation(consumer)
        assert held is not None
        moved = {provider: dict(amounts) for provider, amounts in held.resources.items()}
        moved[child.uuid] = {RESOURCE_CLASS: moved[root].pop(RESOURCE_CLASS)}
        await host.placement.put_allocation(
            consumer,
            Allocation(
                resources=moved,
                project_id=held.project_id,
                user_id=held.user_id,
                consumer_type=held.consumer_type,
                consumer_generation=held.consumer_generation,
            ),
        )
    generation, inventories = await host.placement.inventories(root)
    inventories.pop(RESOURCE_CLASS)
    await host.placement.set_inventories(root, generation, inventories)

    outcome = await host.reconcile()

    assert outcome.differences == ()
    assert await host.held(uuid) == FULL_SIZE
    assert host.accounting.slots_used() == [(("amd-sev",), 1.0)]
