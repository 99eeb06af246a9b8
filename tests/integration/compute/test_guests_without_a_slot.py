"""A guest that Placement has no slot for holds up nothing else, and is counted when one comes free."""

import asyncio
from uuid import uuid4

import pytest

from sev_agent.compute import postponed as postponed_module
from sev_agent.openstack.exchange import ServiceUnavailable
from sev_agent.openstack.placement import Allocation, Full
from tests.integration.compute.conftest import SLOTS, UNMANAGED_SIZE, CountingHost, registered
from tests.libvirt_host import PATIENCE


async def refused(host: CountingHost) -> None:
    async with asyncio.timeout(PATIENCE):
        while ("PUT", 409) not in host.requests:  # noqa: ASYNC110 - a refusal rings no bell
            await asyncio.sleep(0.01)


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
    await refused(host)
    host.in_flight.add(first)
    await host.accounting.release(first)

    await host.eventually_holds(beyond, UNMANAGED_SIZE)


@pytest.mark.parametrize("by_event", [True, False], ids=["by an event", "by an operation"])
async def test_refused_guest_gets_a_slot_whose_release_was_not_answered(
    host: CountingHost, monkeypatch: pytest.MonkeyPatch, *, by_event: bool
) -> None:
    """Room that Placement has made is found also though its answer, that it has made it, was lost."""
    await registered(host)
    leaving = await host.start_guest(ours=False)
    await host.eventually_holds(leaving, UNMANAGED_SIZE)
    await host.built()
    beyond = await host.start_guest(ours=False)
    await refused(host)
    host.lose_answer(monkeypatch)
    if by_event:
        await host.libvirt.domains.destroy(leaving)
    else:
        host.in_flight.add(leaving)
        with pytest.raises(ServiceUnavailable):
            await host.accounting.release(leaving)

    await host.eventually_holds(beyond, UNMANAGED_SIZE)
