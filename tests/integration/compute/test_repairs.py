"""What others write into Placement by hand is as it should be after the next comparison."""

from dataclasses import replace
from uuid import uuid4

import aiohttp
import pytest

from sev_agent.openstack.placement import Allocation, Inventory
from sev_agent.sev.generation import RESOURCE_CLASS, Generation
from tests.integration.compute.conftest import FULL_SIZE, SLOTS, CountingHost, registered, resources
from tests.releases import release


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


async def test_deleted_provider(host: CountingHost) -> None:
    """A host whose providers somebody deleted registers again."""
    root, child = await registered(host)
    await host.placement.delete_provider(child.uuid)
    await host.placement.delete_provider(root.uuid)

    outcome = await host.reconcile()

    assert outcome.inventory_changed
    assert await host.placement.find_provider(f"{host.name}_amd_sev") is not None
