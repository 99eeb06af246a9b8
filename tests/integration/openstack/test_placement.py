"""The adapter against a real Placement."""

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from uuid import UUID, uuid4

import aiohttp
import pytest

from sev_agent.config import ServiceSection
from sev_agent.lab.accounts import service_user
from sev_agent.lab.openstack import OpenStack
from sev_agent.openstack.identity import AuthenticationFailed, KeystoneIdentity, NoIdentity
from sev_agent.openstack.placement import (
    Allocation,
    ConcurrentUpdate,
    Full,
    Inventory,
    InventoryInUse,
    NameTaken,
    Placement,
    PlacementRefused,
    Provider,
    ProviderInUse,
    ProviderNotFound,
    RequestGroup,
    retry_conflicts,
)
from tests.releases import release

SLOT = "MEM_ENCRYPTION_CONTEXT"
SEV = "HW_CPU_X86_AMD_SEV"
NODE = "CUSTOM_NODE_TYPE_SEV"


def claim(resources: Mapping[UUID, Mapping[str, int]], generation: int | None = None) -> Allocation:
    return Allocation(
        resources=resources,
        project_id=str(uuid4()),
        user_id="user",
        consumer_type="INSTANCE",
        consumer_generation=generation,
    )


async def make_host(placement: Placement, slots: int = 2) -> tuple[Provider, Provider]:
    """A root and its child with slots, of names of their own."""
    name = f"host-{uuid4()}"
    root = await placement.create_provider(name, uuid=uuid4())
    child = await placement.create_provider(f"{name}_amd_sev", uuid=uuid4(), parent=root.uuid)
    memory = {"MEMORY_MB": Inventory(total=8192, reserved=512, max_unit=8192)}
    await placement.set_inventories(root.uuid, root.generation, memory)
    generation = await placement.set_inventories(
        child.uuid, child.generation, {SLOT: Inventory(total=slots, max_unit=1)}
    )
    await placement.set_traits(child.uuid, generation, {SEV})
    return root, child


async def test_tree(placement: Placement) -> None:
    """A root and its child are found by name, and as one tree from either end."""
    root, child = await make_host(placement)
    assert (root.parent, root.root) == (None, root.uuid)
    assert (child.parent, child.root) == (root.uuid, root.uuid)
    found = await placement.find_provider(child.name)
    assert found is not None
    assert replace(found, generation=child.generation) == child
    for member in (root, child):
        assert {provider.uuid for provider in await placement.tree(member.uuid)} == {root.uuid, child.uuid}


async def test_what_is_not_there(placement: Placement) -> None:
    """What does not exist is None, nothing, or an error of its own."""
    assert await placement.find_provider("nobody") is None
    assert await placement.tree(uuid4()) == ()
    assert await placement.allocation(uuid4()) is None
    for operation in (placement.inventories, placement.traits, placement.usages, placement.provider_allocations):
        with pytest.raises(ProviderNotFound, match=r"/resource_providers/"):
            await operation(uuid4())
    await placement.delete_provider(uuid4())


async def test_create_is_idempotent(placement: Placement) -> None:
    """Creating what exists gives the existing one; under another parent it is refused with both named."""
    root, child = await make_host(placement)
    again = await placement.create_provider(child.name, uuid=uuid4(), parent=root.uuid)
    assert again.uuid == child.uuid
    with pytest.raises(NameTaken, match=child.name):
        await placement.create_provider(child.name, uuid=child.uuid)
    with pytest.raises(NameTaken, match=str(root.uuid)):
        await placement.create_provider("another name", uuid=root.uuid)
    with pytest.raises(PlacementRefused, match="parent"):
        await placement.create_provider(f"orphan-{uuid4()}", uuid=uuid4(), parent=uuid4())


async def test_inventories(placement: Placement) -> None:
    """What was set is what is read, and an old generation is refused."""
    root, _ = await make_host(placement)
    generation, before = await placement.inventories(root.uuid)
    assert before == {"MEMORY_MB": Inventory(total=8192, reserved=512, max_unit=8192)}
    wanted = {
        "MEMORY_MB": Inventory(total=4096, max_unit=4096),
        "VCPU": Inventory(total=4, max_unit=4, allocation_ratio=1.5),
    }
    new = await placement.set_inventories(root.uuid, generation, wanted)
    assert await placement.inventories(root.uuid) == (new, wanted)
    with pytest.raises(ConcurrentUpdate) as caught:
        await placement.set_inventories(root.uuid, generation, wanted)
    assert caught.value.retryable


async def test_traits(placement: Placement) -> None:
    """Custom traits are created on the way; unknown standard ones are refused."""
    root, _ = await make_host(placement)
    generation, before = await placement.traits(root.uuid)
    assert before == frozenset()
    new = await placement.set_traits(root.uuid, generation, {NODE, SEV})
    assert await placement.traits(root.uuid) == (new, frozenset({NODE, SEV}))
    with pytest.raises(ConcurrentUpdate):
        await placement.set_traits(root.uuid, generation, {NODE})
    with pytest.raises(PlacementRefused, match="HW_CPU_WITH_WINGS"):
        await placement.set_traits(root.uuid, new, {"HW_CPU_WITH_WINGS"})


async def test_claim_and_release(placement: Placement) -> None:
    """A claim over two providers counts on both, reads back as it was put, and is gone after its release."""
    root, child = await make_host(placement)
    consumer = uuid4()
    wanted = claim({root.uuid: {"MEMORY_MB": 512}, child.uuid: {SLOT: 1}})
    await placement.put_allocation(consumer, wanted)
    assert await placement.usages(child.uuid) == {SLOT: 1}
    assert (await placement.provider_allocations(root.uuid))[1] == {consumer: {"MEMORY_MB": 512}}
    held = await placement.allocation(consumer)
    assert held is not None
    assert held.consumer_generation is not None
    assert replace(held, consumer_generation=None) == wanted
    assert await release(placement, consumer) is True
    assert await placement.usages(child.uuid) == {SLOT: 0}
    assert await placement.allocation(consumer) is None
    assert await release(placement, consumer) is False


async def test_consumer_must_be_as_it_was_read(placement: Placement) -> None:
    """A claim for a new consumer that exists, or with an old generation, is a conflict; with the right one it works."""
    root, _ = await make_host(placement)
    consumer = uuid4()
    await placement.put_allocation(consumer, claim({root.uuid: {"MEMORY_MB": 64}}))
    with pytest.raises(ConcurrentUpdate):
        await placement.put_allocation(consumer, claim({root.uuid: {"MEMORY_MB": 128}}))
    held = await placement.allocation(consumer)
    assert held is not None
    await placement.put_allocation(consumer, replace(held, resources={root.uuid: {"MEMORY_MB": 128}}))
    with pytest.raises(ConcurrentUpdate):
        await placement.put_allocation(consumer, held)
    assert await placement.usages(root.uuid) == {"MEMORY_MB": 128}


async def test_full(placement: Placement) -> None:
    """A claim for more than is left, or of a class that the provider lacks, says that it is full."""
    root, child = await make_host(placement, slots=1)
    await placement.put_allocation(uuid4(), claim({child.uuid: {SLOT: 1}}))
    for resources in ({child.uuid: {SLOT: 1}}, {child.uuid: {SLOT: 2}}, {root.uuid: {"VCPU": 1}}):
        consumer = uuid4()
        with pytest.raises(Full) as caught:
            await placement.put_allocation(consumer, claim(resources))
        assert caught.value.code == "placement.full"
        assert await placement.allocation(consumer) is None


async def test_claim_of_nothing_known(placement: Placement) -> None:
    """A claim from a provider or of a class that does not exist is refused, and not as full."""
    root, _ = await make_host(placement)
    for resources in ({uuid4(): {SLOT: 1}}, {root.uuid: {"CUSTOM_WINGS": 1}}):
        with pytest.raises(PlacementRefused):
            await placement.put_allocation(uuid4(), claim(resources))


async def test_last_slot_is_taken_once(placement: Placement) -> None:
    """Of eight clients that claim the last slot at the same time, exactly one gets it."""
    for _ in range(5):
        _, child = await make_host(placement, slots=1)

        async def take(child: Provider = child) -> bool:
            consumer = uuid4()
            try:
                await retry_conflicts(lambda: placement.put_allocation(consumer, claim({child.uuid: {SLOT: 1}})))
            except Full:
                return False
            return True

        assert sum(await asyncio.gather(*(take() for _ in range(8)))) == 1
        assert await placement.usages(child.uuid) == {SLOT: 1}


async def test_inventory_changes_among_claims(placement: Placement) -> None:
    """Claims raise the provider's generation; an inventory written with fresh reads gets through among them."""
    _, child = await make_host(placement, slots=50)

    async def change(total: int) -> None:
        generation, inventories = await placement.inventories(child.uuid)
        changed = {SLOT: replace(inventories[SLOT], total=total)}
        await placement.set_inventories(child.uuid, generation, changed)

    claims = [placement.put_allocation(uuid4(), claim({child.uuid: {SLOT: 1}})) for _ in range(20)]
    await asyncio.gather(*claims, retry_conflicts(lambda: change(60)))
    assert await placement.usages(child.uuid) == {SLOT: 20}
    assert (await placement.inventories(child.uuid))[1][SLOT].total == 60


async def test_in_use(placement: Placement) -> None:
    """What is held, or has children, cannot be removed; when it is free it can."""
    root, child = await make_host(placement)
    consumer = uuid4()
    await placement.put_allocation(consumer, claim({child.uuid: {SLOT: 1}}))
    generation, _ = await placement.inventories(child.uuid)
    with pytest.raises(InventoryInUse):
        await placement.set_inventories(child.uuid, generation, {})
    for provider in (root, child):
        with pytest.raises(ProviderInUse):
            await placement.delete_provider(provider.uuid)
    await release(placement, consumer)
    await placement.delete_provider(child.uuid)
    await placement.delete_provider(root.uuid)
    assert await placement.tree(root.uuid) == ()


async def test_candidates(placement: Placement) -> None:
    """A request for memory and a slot finds the host, and what the candidate says can be claimed as it stands."""
    root, child = await make_host(placement)
    generation, _ = await placement.traits(root.uuid)
    trait = f"CUSTOM_{uuid4().hex.upper()}"
    await placement.set_traits(root.uuid, generation, {trait})
    groups = {
        "": RequestGroup(resources={"MEMORY_MB": 256}, required=frozenset({trait})),
        "_SEV": RequestGroup(resources={SLOT: 1}, required=frozenset({SEV}), forbidden=frozenset({NODE})),
    }
    found = await placement.allocation_candidates(groups)
    [candidate] = found.candidates
    assert candidate.resources == {root.uuid: {"MEMORY_MB": 256}, child.uuid: {SLOT: 1}}
    assert candidate.groups == {"": (root.uuid,), "_SEV": (child.uuid,)}
    summary = found.providers[child.uuid]
    assert (summary.root, summary.parent) == (root.uuid, root.uuid)
    assert (summary.capacity, summary.used, summary.traits) == ({SLOT: 2}, {SLOT: 0}, frozenset({SEV}))
    await placement.put_allocation(uuid4(), claim(candidate.resources))
    nowhere = {"": replace(groups[""], in_tree=uuid4()), "_SEV": groups["_SEV"]}
    assert (await placement.allocation_candidates(nowhere)).candidates == ()


async def test_through_keystone(session: aiohttp.ClientSession, cloud: OpenStack) -> None:
    """With Keystone in front, Placement is found in the catalog and takes its token."""
    placement = Placement(session, KeystoneIdentity(session, service_user(cloud)), ServiceSection())
    _, child = await make_host(placement)
    assert await placement.usages(child.uuid) == {SLOT: 0}


async def test_without_keystone_the_other_kind_of_placement_refuses(
    session: aiohttp.ClientSession, cloud: OpenStack
) -> None:
    """A Placement that wants Keystone's tokens does not take the stand-in for one."""
    placement = Placement(session, NoIdentity(), ServiceSection(endpoint=cloud.placement_url))
    with pytest.raises(AuthenticationFailed, match=r"auth\.type"):
        await placement.find_provider("x")
