"""Notifications made while a real RabbitMQ is stopped arrive in order once it runs again, over a SIGKILL too."""

import asyncio
import sys
from pathlib import Path

from sev_agent.messaging import topology
from sev_agent.messaging.broker import Broker
from sev_agent.messaging.envelope import decode_notification, unpack
from tests.integration.messaging.conftest import MAX_BYTES, Connect
from tests.rabbitmq import RabbitNode


async def _live(url: str, directory: Path, first: int) -> asyncio.subprocess.Process:
    """A daemon that has told its part, and is there to be killed."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.integration.messaging.teller", url, str(directory), str(first)),
        cwd=Path(__file__).parents[3],
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    async with asyncio.timeout(30):
        while (line := await process.stdout.readline()) != b"ready\n":
            assert line, "the daemon ended"
    return process


async def _listen(broker: Broker, queue: str) -> None:
    channel = await (await broker.link()).channel()
    listening = await channel.declare_queue(queue, durable=True, arguments={"x-queue-type": "quorum"})
    await listening.bind(topology.EXCHANGE, routing_key=topology.notification_key("info"))
    await channel.close()


async def _heard(broker: Broker, queue: str, count: int) -> list[object]:
    channel = await (await broker.link()).channel()
    listening = await channel.get_queue(queue)
    numbers: list[object] = []
    async with asyncio.timeout(30), listening.iterator(no_ack=True) as arriving:
        async for message in arriving:
            numbers.append(decode_notification(unpack(message.body, max_bytes=MAX_BYTES)).payload["number"])
            if len(numbers) == count:
                break
    await channel.close()
    return numbers


async def test_killed_twice_while_stopped(node: RabbitNode, connect: Connect, host: str, tmp_path: Path) -> None:
    """Two daemons, one after the other, each killed during the outage: a third tells all of both, in order, once."""
    await _listen(await connect(node.url), host)
    await asyncio.to_thread(node.ctl, "stop_app")
    try:
        for first in (0, 6):
            process = await _live(node.url, tmp_path, first)
            process.kill()
            await process.wait()
    finally:
        await asyncio.to_thread(node.ctl, "start_app")
    process = await _live(node.url, tmp_path, 12)
    try:
        assert await _heard(await connect(node.url), host, 17) == list(range(17))
    finally:
        process.kill()
        await process.wait()
