"""Where a request goes, against real Placement and RabbitMQ."""

from sev_agent.openstack.placement import Placement
from sev_agent.sev.generation import RESOURCE_CLASS
from sev_agent.sev.holdings import ConsumerType
from tests.integration.scheduler.conftest import (
    OVERHEAD,
    Decider,
    Ear,
    MakeDecider,
    MakeHost,
    fields,
)

ATTEMPT = {"code": "slots.none", "message": "every slot is taken"}


async def test_claimed_and_told(decider: Decider, make_host: MakeHost, placement: Placement, ear: Ear) -> None:
    """The host hears of the build once its slot, processors, memory and disk are claimed for the instance."""
    host = await make_host(slots=1)

    asked = await decider.schedule()

    told = await host.next()
    assert told.instance == asked
    assert told.scheduling is not None
    assert (told.scheduling.forced_host, told.scheduling.tried) == (None, ())
    held = await placement.allocation(asked.uuid)
    assert held is not None
    assert (held.consumer_type, held.project_id) == (ConsumerType.SCHEDULED, "project")
    amounts = {name: amount for given in held.resources.values() for name, amount in given.items()}
    assert amounts == {"VCPU": 2, "MEMORY_MB": 64 + OVERHEAD, "DISK_GB": 1, RESOURCE_CLASS: 1}
    end = await ear.outcome(asked.uuid)
    assert [heard.event_type.rsplit(".", 1)[1] for heard in ear.of(asked.uuid)] == ["start", "end"]
    assert end.publisher_id == "sev_scheduler.tests"
    assert fields(end)["host"] == host.name
    assert fields(end)["project_id"] == "project"


async def test_spread_and_pack(make_decider: MakeDecider, make_host: MakeHost) -> None:
    """Spread takes turns among equal hosts, also for requests that share one look; pack fills one first."""
    one, other = await make_host(slots=4), await make_host(slots=4)
    async with make_decider() as spreading:
        for _ in range(4):
            await spreading.schedule()
    for _ in range(2):
        await one.next()
        await other.next()
    assert one.taken() == other.taken() == []

    async with make_decider(strategy="pack") as packing:
        for _ in range(2):
            await packing.schedule()
    assert sorted([len(one.taken()), len(other.taken())]) == [0, 2]
