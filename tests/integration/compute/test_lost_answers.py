"""Placement that goes away in the middle of what is written there."""

import asyncio
from dataclasses import replace
from uuid import UUID

import pytest

from sev_agent.openstack.exchange import ServiceUnavailable
from sev_agent.openstack.placement import Allocation
from tests.integration.compute.conftest import FULL_SIZE, CountingHost, registered
from tests.libvirt_host import PATIENCE


async def test_answer_that_is_lost(host: CountingHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that Placement has carried out though its answer was lost is not taken for one that it has not."""
    await registered(host)
    uuid = await host.built()
    await host.eventually_holds(uuid, FULL_SIZE)
    lost = host.lose_answer(monkeypatch)
    await host.libvirt.domains.destroy(uuid)
    async with asyncio.timeout(PATIENCE):
        await lost.wait()
    await host.libvirt.domains.start(uuid)

    await host.eventually_holds(uuid, FULL_SIZE)


async def test_placement_goes_during_the_repairs(host: CountingHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a comparison repaired before Placement went away is told by the next one that comes to its end."""
    await registered(host)
    ours = [await host.built(), await host.built()]
    await host.reconcile()
    for uuid in ours:
        held = await host.placement.allocation(uuid)
        assert held is not None
        await host.placement.put_allocation(uuid, replace(held, resources={}))
    put, written = host.placement.put_allocation, asyncio.Event()

    async def put_one(consumer: UUID, allocation: Allocation) -> None:
        if consumer == ours[1]:
            await written.wait()
            raise ServiceUnavailable("is away", service="placement", url="http://127.0.0.1:1")
        await put(consumer, allocation)
        written.set()

    with monkeypatch.context() as away:
        away.setattr(host.placement, "put_allocation", put_one)
        with pytest.raises(ServiceUnavailable):
            await host.reconcile()
    outcome = await host.reconcile()

    assert {found.consumer for found in outcome.differences} == set(ours)
    assert (await host.reconcile(thorough=True)).is_clean
