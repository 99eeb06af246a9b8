"""Messages that come twice, late, in another order, or make no sense."""

import asyncio
import random
from typing import Any
from uuid import UUID, uuid4

import pytest

from tests.e2e.agent_process import Samples
from tests.e2e.ear import Ear
from tests.e2e.waiting import eventually
from tests.faults.conftest import World
from tests.faults.strange_messages import strange_bodies

pytestmark = pytest.mark.asyncio(loop_scope="session")

COUNT = 1000
_AT_ONCE = 50
_PATIENCE = 120.0
_MEMORY_GROWTH = 64 * 1024 * 1024
"""Bytes of memory that a thousand messages may leave behind."""

_ANY = {"active", "stopped", "error", "deleted"}


async def test_thousand_strange_messages(world: World, fault_seed: int) -> None:
    """Each of a thousand random and spoiled messages is carried out or dead-lettered with its reason; none harms."""
    await world.have()
    cloud, pid = world.cloud, world.agent.pid
    await cloud.dead_letters()
    templates = _templates(world, str(await world.build()))
    bodies = await asyncio.to_thread(strange_bodies, COUNT, fault_seed, templates)
    before = await world.agent.metrics()
    for start in range(0, COUNT, _AT_ONCE):
        await asyncio.gather(*(cloud.post(body) for body in bodies[start : start + _AT_ONCE]))
    letters = []

    async def all_settled() -> bool:
        letters.extend(await cloud.dead_letters())
        done = _requests(await world.agent.metrics()) - _requests(before)
        return bool(done >= COUNT and len(letters) >= COUNT - _done_well(await world.agent.metrics(), before))

    await eventually(all_settled, within=_PATIENCE, what="every message is settled", every=0.5)
    world.tally.messages += COUNT

    after = await world.agent.metrics()
    assert _requests(after) - _requests(before) == COUNT
    assert after("sev_agent_rpc_requests_total", outcome="failed") == before(
        "sev_agent_rpc_requests_total", outcome="failed"
    )
    assert len(letters) + _done_well(after, before) == COUNT
    assert all(letter.headers["x-sev-agent-reason"] and letter.headers["x-sev-agent-code"] for letter in letters)
    assert {letter.body for letter in letters} <= set(bodies)
    assert world.agent.pid == pid
    assert (await world.agent.get("/readyz"))[0] == 200
    grown = after("process_resident_memory_bytes") - before("process_resident_memory_bytes")
    assert grown < _MEMORY_GROWTH
    for view in await cloud.ask("list_instances"):
        world.asked[UUID(view["uuid"])] = _ANY
    await world.hold()
    assert await cloud.runs(await world.build())
    await world.hold()


async def test_everything_twice(world: World) -> None:
    """Requests that each come three times do what they do once."""
    await world.have()
    stopped, deleted, again = [await world.build() for _ in range(3)]
    request = world.request()
    world.asked[UUID(request["uuid"])] = {"active"}
    for _ in range(3):
        await world.cloud.cast("build_and_run_instance", instance=request)
        await world.power("stop_instance", stopped, "stopped")
        await world.power("reboot_instance", again, "active", reboot_type="HARD")
        await world.delete(deleted)
    world.note()
    await world.hold()


async def test_redelivered(world: World) -> None:
    """Requests whose connection is cut again and again before their acks arrive are each carried out, once."""
    await world.have()
    for _ in range(4):
        guests = [await world.begin(), await world.begin()]
        world.proxies.broker.cut()
        world.note()
        await world.works()
        await world.hold()
        await world.delete(*guests)
        world.proxies.broker.cut()
        await world.works()
        await world.hold()


async def test_delayed(world: World) -> None:
    """Requests that arrive late, after those that came later by another way, end in a state that was asked for."""
    await world.have()
    guest = await world.build()
    world.proxies.broker.freeze()
    late = await world.begin()
    await world.power("stop_instance", guest, "stopped")
    assert (await world.cloud.virsh("destroy", f"instance-{guest}")).status == 0
    await asyncio.sleep(1)
    world.note()
    world.proxies.broker.thaw()
    assert (await world.hold())[late] == "active"


@pytest.mark.parametrize("turn", range(3))
async def test_reordered(world: World, ear: Ear, fault_seed: int, turn: int) -> None:
    """Requests about a few guests, some of them twice, in any order, with cuts: whatever comes of it is counted."""
    await world.have()
    chance = random.Random(fault_seed + turn)
    sent: list[tuple[str, dict[str, Any]]] = []
    for _ in range(3):
        request = world.request()
        uuid = UUID(request["uuid"])
        world.asked[uuid] = _ANY
        named = {"instance_uuid": str(uuid)}
        sent += [
            ("build_and_run_instance", {"instance": request}),
            ("stop_instance", named),
            ("start_instance", named),
            ("reboot_instance", {**named, "reboot_type": "HARD"}),
            ("terminate_instance", named),
        ]
    sent += chance.sample(sent, 6)
    chance.shuffle(sent)
    for number, (method, arguments) in enumerate(sent):
        await world.cloud.cast(method, **arguments)
        if number % 7 == 3:
            world.proxies.broker.cut()
            world.note()
    await world.works()

    async def all_accepted() -> bool:
        # What the host has a record of is told with its name. A build that a cut has put back into the queue would
        # otherwise come when all is over.
        return all(any("name" in each.payload for each in ear.about(uuid)) for uuid in world.asked)

    await eventually(all_accepted, within=_PATIENCE, what="every build is accepted")
    await world.hold()


def _templates(world: World, uuid: str) -> dict[str, dict[str, Any]]:
    """Good requests. The image does not exist: a build that survives the spoiling must not cost a guest."""
    unknown = str(uuid4())
    return {
        "build_and_run_instance": {"instance": world.request(image__id=str(uuid4()))},
        "terminate_instance": {"instance_uuid": unknown},
        "start_instance": {"instance_uuid": uuid},
        "stop_instance": {"instance_uuid": unknown},
        "reboot_instance": {"instance_uuid": unknown, "reboot_type": "SOFT"},
    }


def _requests(samples: Samples) -> float:
    return samples("sev_agent_rpc_requests_total") - _queries(samples)


def _done_well(after: Samples, before: Samples) -> float:
    return _work(after, "ok") - _work(before, "ok")


def _work(samples: Samples, outcome: str) -> float:
    total = samples("sev_agent_rpc_requests_total", outcome=outcome)
    return total - sum(samples("sev_agent_rpc_requests_total", outcome=outcome, method=name) for name in _QUERIES)


_QUERIES = ("get_instance", "list_instances", "get_host_status", "get_console_output")


def _queries(samples: Samples) -> float:
    return sum(samples("sev_agent_rpc_requests_total", method=name) for name in _QUERIES)
