"""The writing of allocations while others write too, and while Placement does not say what became of a write."""

from dataclasses import replace
from typing import cast
from uuid import UUID, uuid4

import pytest

from sev_agent.compute.allocation import ProviderTree
from sev_agent.compute.holding import Holding
from sev_agent.compute.ledger import Ledger
from sev_agent.errors import SevAgentError
from sev_agent.openstack.exchange import ServiceUnavailable
from sev_agent.openstack.placement import Allocation, ConcurrentUpdate, Full, Placement
from sev_agent.sev.generation import Generation
from sev_agent.sev.holdings import ConsumerType

ROOT = uuid4()
TREE = ProviderTree(ROOT, {Generation.SEV: uuid4()})
AWAY = ServiceUnavailable("is away", service="placement", url="http://127.0.0.1:1")


def holding(disk: int) -> Holding:
    return Holding(
        resources={ROOT: {"DISK_GB": disk}}, consumer_type=ConsumerType.INSTANCE, project_id="p", user_id="u"
    )


class Scripted:
    """Placement's allocations, with its rule for generations. ``faults`` are raised, one for each write."""

    def __init__(self) -> None:
        self.held: dict[UUID, Allocation] = {}
        self.faults: list[SevAgentError | None] = []

    async def allocation(self, uuid: UUID) -> Allocation | None:
        return self.held.get(uuid)

    async def put_allocation(self, uuid: UUID, wanted: Allocation) -> None:
        if self.faults and (fault := self.faults.pop(0)) is not None:
            raise fault
        present = self.held.get(uuid)
        if wanted.consumer_generation != (present.consumer_generation if present else None):
            raise ConcurrentUpdate("another generation")
        if wanted.resources:
            self.held[uuid] = replace(wanted, consumer_generation=(wanted.consumer_generation or 0) + 1)
        else:
            self.held.pop(uuid, None)


@pytest.fixture
def placement() -> Scripted:
    return Scripted()


@pytest.fixture
def ledger(placement: Scripted) -> Ledger:
    return Ledger(cast("Placement", placement), is_ours=lambda _, __: True)


async def test_conflict_at_a_release(ledger: Ledger, placement: Scripted) -> None:
    """A release that another write collides with reads again, and gives back all."""
    uuid = uuid4()
    await ledger.write(uuid, holding(1), TREE)
    placement.faults = [ConcurrentUpdate("meanwhile"), ConcurrentUpdate("meanwhile")]

    assert await ledger.release(uuid, TREE)

    assert placement.held == {}
    assert not ledger.may_hold(uuid)


async def test_conflict_at_a_write(ledger: Ledger, placement: Scripted) -> None:
    """A write that another one collides with reads again, and what it wrote is known."""
    uuid = uuid4()
    await ledger.write(uuid, holding(1), TREE)
    placement.faults = [ConcurrentUpdate("meanwhile")]

    assert await ledger.write(uuid, holding(2), TREE)

    assert placement.held[uuid].resources == {ROOT: {"DISK_GB": 2}}
    assert ledger.held[uuid] == holding(2)


@pytest.mark.parametrize(("fault", "told"), [(AWAY, True), (Full("no slot is free"), False), (None, True)])
async def test_what_a_comparison_is_told(
    ledger: Ledger, placement: Scripted, fault: SevAgentError | None, *, told: bool
) -> None:
    """A comparison hears of every write that was made, or may have been; of one that was refused it does not."""
    uuid = uuid4()
    placement.faults = [fault]

    with ledger.watching() as written:
        if fault is None:
            await ledger.write(uuid, holding(1), TREE)
        else:
            with pytest.raises(type(fault)):
                await ledger.write(uuid, holding(1), TREE)

    assert (uuid in written) is told
    await ledger.release(uuid, TREE)
    assert (uuid in written) is told
