"""What is said where no host can take a request."""

from uuid import uuid4

import aiohttp

from sev_agent.openstack.placement import Placement
from sev_agent.sev.generation import DISABLED_TRAIT
from tests.integration.scheduler.conftest import Decider, Ear, FakeHost, MakeHost, counted, fields, said, told
from tests.releases import release
from tests.requests import instance, requested


async def test_counts_that_explain(
    decider: Decider, make_host: MakeHost, placement: Placement, ear: Ear, session: aiohttp.ClientSession
) -> None:
    """Without a host, the counts say at which condition each dropped out, and the text ends with the last one."""
    plain = await placement.create_provider(f"plain-{uuid4().hex[:6]}", uuid=uuid4())
    assert plain.parent is None
    disabled = await make_host(slots=5)
    generation, traits = await placement.traits(disabled.rp)
    await placement.set_traits(disabled.rp, generation, traits | {DISABLED_TRAIT})
    await make_host(slots=5, alive=False)
    full, small_one, tried = await make_host(slots=1), await make_host(slots=5, memory_mb=200), await make_host(slots=5)
    await decider.schedule(host=full.name)
    big = requested()
    big["flavor"]["memory_mb"] = 4096

    asked = await decider.schedule(instance(flavor=big["flavor"]), tried=said(tried))

    error = await ear.outcome(asked.uuid)
    assert (error.event_type, error.priority) == ("sev.instance.schedule.error", "error")
    assert fields(error)["counts"] == {
        "known": 6,
        "of_node_type": 5,
        "enabled": 4,
        "alive": 3,
        "free_slot": 2,
        "enough_ram": 1,
        "enough_disk": 1,
        "enough_vcpus": 1,
        "not_tried": 0,
    }
    fault = fields(error)["fault"]
    assert fault["code"] == "scheduler.no_valid_host"
    assert f"0 not tried yet. {tried.name} said: every slot is taken (hypervisor.no_slot)" in fault["message"]
    assert fields(error)["tried"] == said(tried)
    assert await placement.allocation(asked.uuid) is None
    assert small_one.told == 0


async def test_no_host_at_all(decider: Decider, ear: Ear) -> None:
    """In a cloud that no host has joined yet, that is what is said."""
    asked = await decider.schedule()
    assert fields(await ear.outcome(asked.uuid))["counts"] == counted(0)


async def test_up_to_three_hosts(decider: Decider, make_host: MakeHost, placement: Placement, ear: Ear) -> None:
    """A build that fails goes to a second and a third host, each time to one that has not tried; then it is over."""
    hosts = [await make_host(slots=3) for _ in range(5)]
    asked = instance()
    tried: list[FakeHost] = []
    for n in range(3):
        await decider.schedule(asked, **({"tried": said(*tried)} if tried else {}))
        await told(n + 1, *hosts)
        (now,) = [host for host in hosts if host.told and host not in tried]
        build = await now.next()
        assert build.scheduling is not None
        assert [attempt.host for attempt in build.scheduling.tried] == [host.name for host in tried]
        await release(placement, asked.uuid)
        tried.append(now)
        assert len(tried) == n + 1
    ear.heard.clear()

    await decider.schedule(asked, tried=said(*tried))

    error = fields(await ear.outcome(asked.uuid))
    assert error["fault"]["message"].startswith("3 hosts could not build the server")
    assert all(f"{host.name} said" in error["fault"]["message"] for host in tried)
    assert sum(host.told for host in hosts) == 3
    assert await placement.allocation(asked.uuid) is None
