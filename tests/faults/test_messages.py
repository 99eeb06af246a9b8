"""Messages that come twice, late, in another order, or make no sense."""

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from uuid import UUID, uuid4

import pytest

from sev_agent.messaging import topology
from sev_agent.messaging.envelope import Reply, decode_reply, unpack
from tests.e2e.agent_process import Samples
from tests.e2e.cloud import DeadLetter
from tests.e2e.ear import MAX_BYTES
from tests.e2e.waiting import eventually
from tests.faults.conftest import World
from tests.faults.strange_messages import strange_messages

pytestmark = pytest.mark.asyncio(loop_scope="session")

COUNT = 1000
QUERIES = 300
"""How many of them go to the query queue."""

_AT_ONCE = 50
_PATIENCE = 120.0
_MEMORY_GROWTH = 64 * 1024 * 1024
"""Bytes of memory that a thousand messages may leave behind."""

_ANY = {"active", "stopped", "error", "deleted"}


async def test_thousand_strange_messages(world: World, fault_seed: int) -> None:
    """A thousand random and spoiled messages to both queues: every call is answered, each once; every other one is
    carried out or dead-lettered with its reason; none harms.
    """
    await world.have()
    cloud, pid = world.cloud, world.agent.pid
    await cloud.dead_letters()
    guest = str(await world.build())
    async with _reply_queue(world) as (reply_queue, take_answers):
        queues = {
            topology.work_queue_name(cloud.host.name): (COUNT - QUERIES, _templates(world, guest)),
            topology.query_queue_name(cloud.host.name): (QUERIES, _questions(guest)),
        }
        sent = {
            queue: await asyncio.to_thread(strange_messages, count, fault_seed, templates, reply_queue=reply_queue)
            for queue, (count, templates) in queues.items()
        }
        calls = {message.msg_id for messages in sent.values() for message in messages} - {None}
        before = await world.agent.metrics()
        posts = [cloud.post(message.body, queue=queue) for queue, messages in sent.items() for message in messages]
        for start in range(0, COUNT, _AT_ONCE):
            await asyncio.gather(*posts[start : start + _AT_ONCE])
        answers: list[Reply] = []
        letters: list[DeadLetter] = []

        def good(samples: Samples) -> float:
            """Casts that were carried out."""
            answered_well = sum(answer.failure is None for answer in answers)
            return _grown("ok", samples, before) - answered_well

        async def all_settled() -> bool:
            answers.extend(await take_answers())
            letters.extend(await cloud.dead_letters())
            now = await world.agent.metrics()
            return len(answers) >= len(calls) and len(letters) + good(now) >= COUNT - len(calls)

        await eventually(all_settled, within=_PATIENCE, what="every message is settled", every=0.5)
    world.tally.messages += COUNT
    world.tally.calls += len(calls)

    after = await world.agent.metrics()
    assert len(calls) >= COUNT / 3
    assert Counter(answer.msg_id for answer in answers) == dict.fromkeys(calls, 1)
    assert all(answer.failure is None or (answer.failure.code and answer.failure.message) for answer in answers)
    assert len(letters) + good(after) == COUNT - len(calls)
    assert _grown("failed", after, before) == 0
    for queue, messages in sent.items():
        casts = {message.body for message in messages if message.msg_id is None}
        assert {letter.body for letter in letters if letter.headers["x-original-queue"] == queue} <= casts
    assert {letter.headers["x-original-queue"] for letter in letters} == set(queues)
    assert all(letter.headers["x-sev-agent-reason"] and letter.headers["x-sev-agent-code"] for letter in letters)
    assert world.agent.pid == pid
    assert (await world.agent.get("/readyz"))[0] == 200
    grown = after("process_resident_memory_bytes") - before("process_resident_memory_bytes")
    assert grown < _MEMORY_GROWTH
    for view in await cloud.ask("list_instances"):
        world.asked[UUID(view["uuid"])] = _ANY
    await world.hold()
    assert await cloud.runs(await world.build())
    await world.hold()


@contextlib.asynccontextmanager
async def _reply_queue(world: World) -> AsyncIterator[tuple[str, Callable[[], Awaitable[list[Reply]]]]]:
    """A queue for answers, and what takes all that are in it."""
    channel = await (await world.cloud.broker.wait_up(10)).channel()
    queue = await channel.declare_queue(f"strange_{uuid4().hex}", exclusive=True)

    async def take() -> list[Reply]:
        answers = []
        while (message := await queue.get(no_ack=True, fail=False)) is not None:
            answers.append(decode_reply(unpack(message.body, max_bytes=MAX_BYTES)))
        return answers

    yield queue.name, take
    await channel.close()


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
    for _ in range(3):
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
async def test_reordered(world: World, fault_seed: int, turn: int) -> None:
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
    # A build that a cut has put back into the queue would otherwise come when all is over.
    await world.recorded()
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


def _questions(uuid: str) -> dict[str, dict[str, Any]]:
    return {
        "get_instance": {"instance_uuid": uuid},
        "list_instances": {},
        "get_host_status": {},
        "get_console_output": {"instance_uuid": uuid, "length": 10},
    }


def _grown(outcome: str, after: Samples, before: Samples) -> float:
    return sum(
        sign * samples("sev_agent_rpc_requests_total", outcome=outcome) for sign, samples in ((1, after), (-1, before))
    )
