"""A host's own providers follow what the host can do, also while guests hold slots of them."""

from dataclasses import replace

import pytest

from sev_agent.compute.drift import Kind
from sev_agent.compute.record import State
from sev_agent.openstack.placement import Full, Inventory, Provider
from sev_agent.sev.generation import NODE_TYPE_TRAIT, RESOURCE_CLASS, Generation
from tests.integration.compute.conftest import FULL_SIZE, SLOTS, CountingHost, resources
from tests.libvirt_host import SEV_ES
from tests.requests import record

SEV_AND_ES = (Generation.SEV, Generation.SEV_ES)


async def child(host: CountingHost, generation: Generation = Generation.SEV) -> Provider | None:
    return await host.placement.find_provider(generation.provider_name(host.name))


async def slots(host: CountingHost, generation: Generation = Generation.SEV) -> Inventory:
    found = await child(host, generation)
    assert found is not None
    return (await host.placement.inventories(found.uuid))[1][RESOURCE_CLASS]


async def test_generation_comes(host: CountingHost) -> None:
    """A generation that the host has learnt gets its child while guests of another hold slots."""
    await host.reconcile()
    uuid = await host.built()

    outcome = await host.reconcile(resources(generations=SEV_AND_ES))

    assert [(found.provider, found.kind) for found in outcome.providers] == [
        (f"{host.name}_amd_sev_es", Kind.PROVIDER_MISSING)
    ]
    found = await child(host, Generation.SEV_ES)
    assert found is not None
    assert (await host.placement.traits(found.uuid))[1] == {Generation.SEV_ES.trait}
    assert await host.held(uuid) == FULL_SIZE


async def test_each_generation_has_its_own_pool(host: CountingHost) -> None:
    """A guest takes a slot of its own generation only."""
    await host.reconcile(resources(generations=SEV_AND_ES))

    uuid = await host.start_guest(ours=False, security=SEV_ES)
    await host.reconcile(resources(generations=SEV_AND_ES))

    es, held = await child(host, Generation.SEV_ES), await host.placement.allocation(uuid)
    assert es is not None
    assert held is not None
    assert held.resources[es.uuid] == {RESOURCE_CLASS: 1}
    assert sorted(host.accounting.slots_used()) == [(("amd-sev",), 0.0), (("amd-sev-es",), 1.0)]


async def test_generation_goes(host: CountingHost) -> None:
    """The child of a generation that the host lost goes, if nothing holds slots of it."""
    await host.reconcile(resources(generations=SEV_AND_ES))

    outcome = await host.reconcile()

    assert [(found.kind, found.error) for found in outcome.providers] == [(Kind.PROVIDER_STALE, None)]
    assert await child(host, Generation.SEV_ES) is None
    assert (await host.reconcile()).is_clean


async def test_generation_goes_under_guests(host: CountingHost) -> None:
    """While guests hold its slots, all are reserved and it is told at each look; when they are gone it is deleted."""
    await host.reconcile()
    uuid = await host.built()
    await host.reconcile()
    lost = replace(resources(), slots={})

    for _ in range(2):
        outcome = await host.reconcile(lost)
        [found] = outcome.providers[-1:]
        assert found.kind is Kind.PROVIDER_STALE
        assert "1 guests still hold slots" in str(found.error)
        assert outcome.differences == ()

    assert (await slots(host)).reserved == SLOTS
    provider = await child(host)
    assert provider is not None
    assert Generation.SEV.trait not in (await host.placement.traits(provider.uuid))[1]
    assert await host.held(uuid) == FULL_SIZE
    with pytest.raises(Full):
        await host.accounting.claim(record(State.BUILDING))
    methods = await host.requests_of(lambda: host.reconcile(lost))
    assert set(methods) == {"GET"}

    await host.libvirt.domains.destroy(uuid)
    await host.eventually_holds(uuid, {"DISK_GB": 1})
    await host.reconcile(lost)
    assert await child(host) is None
    assert (await host.reconcile(lost)).is_clean


async def test_generation_comes_back_under_guests(host: CountingHost) -> None:
    """What was reserved is free again when the host has its generation back."""
    await host.reconcile()
    uuid = await host.built()
    await host.reconcile(replace(resources(), slots={}))

    await host.reconcile()

    assert (await slots(host)).reserved == 0
    provider = await child(host)
    assert provider is not None
    assert Generation.SEV.trait in (await host.placement.traits(provider.uuid))[1]
    assert await host.held(uuid) == FULL_SIZE
    await host.accounting.claim(record(State.BUILDING))


async def test_encryption_switched_off(host: CountingHost) -> None:
    """A host that can encrypt nothing any more is of no node type, and offers no slots; switched on, it is again."""
    await host.reconcile()
    root = await host.placement.find_provider(host.name)
    assert root is not None

    await host.reconcile(replace(resources(), slots={}))
    off = (await host.placement.traits(root.uuid))[1]
    await host.reconcile()

    assert NODE_TYPE_TRAIT not in off
    assert NODE_TYPE_TRAIT in (await host.placement.traits(root.uuid))[1]
    assert await child(host) is not None


async def test_fewer_slots_than_guests(host: CountingHost) -> None:
    """A limit that was lowered below what runs is written; the guests keep what they hold, and no other gets a slot."""
    await host.reconcile()
    held = [await host.built() for _ in range(SLOTS)]

    outcome = await host.reconcile(resources(slots=1))

    assert outcome.differences == ()
    assert (await slots(host)).total == 1
    assert [await host.held(uuid) for uuid in held] == [FULL_SIZE] * SLOTS
    with pytest.raises(Full):
        await host.accounting.claim(record(State.BUILDING))


async def test_dry_run_of_a_new_host(host: CountingHost) -> None:
    """A dry run before the first registration tells of the missing provider, and makes none."""
    methods = await host.requests_of(lambda: host.reconcile(dry_run=True))

    assert set(methods) == {"GET"}
    assert (await host.reconcile(dry_run=True)).providers[0].kind is Kind.PROVIDER_MISSING
    assert not host.accounting.is_registered


async def test_dry_run_of_every_reshape(host: CountingHost) -> None:
    """A dry run tells what a change of the host would change, and writes nothing."""
    await host.reconcile(resources(generations=SEV_AND_ES))
    changed = resources(slots=5, disk=7, generations=[Generation.SEV, Generation.SEV_SNP])

    methods = await host.requests_of(lambda: host.reconcile(changed, dry_run=True))
    outcome = await host.reconcile(changed, dry_run=True)

    assert set(methods) == {"GET"}
    assert {(found.provider.removeprefix(host.name), found.kind) for found in outcome.providers} == {
        ("", Kind.INVENTORY),
        ("_amd_sev", Kind.INVENTORY),
        ("_amd_sev_es", Kind.PROVIDER_STALE),
        ("_amd_sev_snp", Kind.PROVIDER_MISSING),
    }
    assert await child(host, Generation.SEV_ES) is not None
