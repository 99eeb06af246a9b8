"""The daemon as a process: what it serves, what it survives, and what of it outlives a SIGKILL."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiohttp
import pytest

from sev_agent.crash_points import VARIABLE, CrashPoint
from sev_agent.messaging import topology
from sev_agent.messaging.broker import Broker
from sev_agent.messaging.client import RpcClient
from sev_agent.openstack.placement import Inventory, Placement
from sev_agent.schema import Instance
from sev_agent.sev.generation import Generation
from tests.e2e.waiting import eventually
from tests.integration.scheduler.conftest import OVERHEAD, Ear, MakeHost, fields, slots_used, told
from tests.proxy import Proxy
from tests.rabbitmq import RabbitNode, free_port
from tests.releases import release
from tests.requests import instance
from tests.running import PATIENCE
from tests.status_page import read, rows

MAX_RSS_MB = 70
_PLACED = 'sev_agent_scheduler_decisions_total{code="",outcome="placed"}'
_COMMAND = (sys.executable, "-m", "sev_agent")


@dataclass
class Process:
    """One scheduler of its own. ``http`` is where it can be asked."""

    process: asyncio.subprocess.Process
    http: str
    config: Path
    log: Path

    async def command(self, *arguments: str) -> str:
        """What a command prints that reads the same configuration."""
        process = await asyncio.create_subprocess_exec(
            *_COMMAND,
            *arguments,
            "--config",
            str(self.config),
            stdout=asyncio.subprocess.PIPE,
            env=os.environ | {"COLUMNS": "200"},
        )
        async with asyncio.timeout(PATIENCE):
            output, _ = await process.communicate()
        assert process.returncode == 0
        return output.decode()

    async def ready(self, session: aiohttp.ClientSession) -> None:
        await self.until(session, status=200)

    async def until(self, session: aiohttp.ClientSession, *, status: int) -> Any:
        """The document of ``/readyz``, once its status is that."""
        async with asyncio.timeout(PATIENCE):
            while True:
                assert self.process.returncode is None, self.log.read_text()
                with contextlib.suppress(aiohttp.ClientError):
                    async with session.get(f"{self.http}/readyz") as answer:
                        if answer.status == status:
                            return await answer.json()
                await asyncio.sleep(0.05)

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)

    @property
    def rss_mb(self) -> float:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        (line,) = [line for line in status.splitlines() if line.startswith("VmRSS")]
        return int(line.split()[1]) / 1024


StartScheduler = Callable[..., AbstractAsyncContextManager[Process]]


@pytest.fixture
def start(
    node: RabbitNode, schedulers_placement_url: str, tmp_path: Path, session: aiohttp.ClientSession
) -> StartScheduler:
    """Starts a scheduler, and ends it with the context; each with its own ``name``."""

    @contextlib.asynccontextmanager
    async def started(
        name: str, *, placement: str = schedulers_placement_url, dies_at: CrashPoint | None = None
    ) -> AsyncIterator[Process]:
        port, config, log = free_port(), tmp_path / f"{name}.toml", tmp_path / f"{name}.log"
        config.write_text(
            f'[scheduler]\nname = "{name}"\nstop_timeout = 5\n'
            f'[messaging]\nurl = "{node.url}"\n[auth]\ntype = "none"\n'
            f'[placement]\nendpoint = "{placement}"\n[http]\nport = {port}\n'
        )
        with log.open("wb") as output:
            process = await asyncio.create_subprocess_exec(
                *_COMMAND,
                "scheduler",
                "--config",
                str(config),
                stdout=output,
                stderr=output,
                env=os.environ | {"SEV_AGENT_LOG__FORMAT": "json"} | ({VARIABLE: dies_at} if dies_at else {}),
            )
        running = Process(process, f"http://127.0.0.1:{port}", config, log)
        try:
            await running.ready(session)
            yield running
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            async with asyncio.timeout(PATIENCE):
                await process.wait()

    return started


async def send(client: RpcClient, *asked: Instance) -> None:
    for each in asked:
        arguments = {"instance": each.model_dump(mode="json"), "host": None}
        await client.cast("schedule_instance", arguments, queue=topology.SCHEDULER_QUEUE)


async def waiting(broker: Broker) -> int:
    """Messages that wait in the schedulers' queue."""
    channel = await (await broker.link()).channel()
    queue = await channel.declare_queue(topology.SCHEDULER_QUEUE, passive=True)
    await channel.close()
    return queue.declaration_result.message_count or 0


async def test_fifty_at_once(
    start: StartScheduler, make_host: MakeHost, placement: Placement, client: RpcClient, ear: Ear
) -> None:
    """Fifty requests through two schedulers onto fifteen slots: fifteen placed, thirty-five refused with the counts.

    One of the schedulers is killed in the middle: that changes no sum, and leaves no claim behind.
    """
    hosts = [await make_host(slots=n) for n in (4, 5, 6)]
    asked = [instance() for _ in range(50)]
    async with start("one") as one, start("two"):
        await send(client, *asked)
        await ear.outcome()
        one.kill()
        outcomes = [await ear.outcome(each.uuid) for each in asked]

    placed = [each.uuid for each, outcome in zip(asked, outcomes, strict=True) if outcome.event_type.endswith("end")]
    refused = [fields(outcome) for outcome in outcomes if outcome.event_type.endswith("error")]
    assert (len(placed), len(refused)) == (15, 35)
    assert [await slots_used(placement, host) for host in hosts] == [4, 5, 6]
    assert all(error["counts"]["free_slot"] == 0 for error in refused)
    assert all("0 with a free amd-sev slot" in error["fault"]["message"] for error in refused)
    await told(15, *hosts)
    builds = [host.builds.get_nowait().instance.uuid for host in hosts for _ in range(host.builds.qsize())]
    assert set(builds) == set(placed)
    for uuid in placed:
        await release(placement, uuid)
    assert [await slots_used(placement, host) for host in hosts] == [0, 0, 0]


@pytest.mark.parametrize("point", [CrashPoint.SCHEDULE_AFTER_CLAIM, CrashPoint.SCHEDULE_AFTER_CAST])
async def test_death_between_two_steps(
    start: StartScheduler,
    make_host: MakeHost,
    placement: Placement,
    client: RpcClient,
    ear: Ear,
    point: CrashPoint,
) -> None:
    """SIGKILL between claim and cast, or before its word of it: the next life goes on, each request has one claim."""
    hosts = [await make_host(slots=5) for _ in range(2)]
    asked = [instance() for _ in range(4)]
    async with start("one", dies_at=point) as one:
        await send(client, *asked)
        async with asyncio.timeout(PATIENCE):
            assert await one.process.wait() == -signal.SIGKILL
    async with start("two"):
        outcomes = [await ear.outcome(each.uuid) for each in asked]

    assert all(outcome.event_type.endswith("end") for outcome in outcomes)
    placed = {each.uuid: fields(outcome)["host"] for each, outcome in zip(asked, outcomes, strict=True)}
    assert [await slots_used(placement, host) for host in hosts] == [
        list(placed.values()).count(host.name) for host in hosts
    ]
    for host in hosts:
        mine = {uuid for uuid, name in placed.items() if name == host.name}
        while mine:
            async with asyncio.timeout(PATIENCE):
                # One that was told twice is told the same host.
                build = (await host.builds.get()).instance.uuid
            assert placed[build] == host.name
            mine.discard(build)


async def test_placement_away(
    start: StartScheduler,
    make_host: MakeHost,
    client: RpcClient,
    broker: Broker,
    ear: Ear,
    session: aiohttp.ClientSession,
    schedulers_placement_url: str,
) -> None:
    """While Placement is away requests wait in the queue, readiness says why, and afterwards each is placed once."""
    host = await make_host(slots=5)
    async with (
        Proxy(int(schedulers_placement_url.rsplit(":", 1)[1])) as proxy,
        start("one", placement=f"http://127.0.0.1:{proxy.port}") as process,
    ):
        proxy.refuse()
        in_hand, later = instance(), [instance() for _ in range(3)]
        await send(client, in_hand)
        told_why = await process.until(session, status=503)
        assert not told_why["dependencies"]["placement"]["up"]
        assert "placement" in told_why["dependencies"]["placement"]["reason"]
        assert told_why["dependencies"]["broker"]["up"]
        async with asyncio.timeout(PATIENCE):
            while "rpc.stopped" not in process.log.read_text():  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.05)
        await send(client, *later)
        assert await waiting(broker) == 3
        proxy.accept()
        await process.ready(session)
        for each in (in_hand, *later):
            assert (await ear.outcome(each.uuid)).event_type.endswith("end")
    assert await told(4, host) == [4]


async def test_not_understood(start: StartScheduler, client: RpcClient, ear: Ear) -> None:
    """A request that nobody can understand is told as an error of its instance, where it names one."""
    asked = instance()
    bad = {"instance": asked.model_dump(mode="json") | {"name": ""}}
    async with start("one"):
        await client.cast("schedule_instance", bad, queue=topology.SCHEDULER_QUEUE)
        fault = fields(await ear.outcome(asked.uuid))["fault"]
    assert (fault["code"], fault["field"]) == ("request.invalid", "instance.name")


async def test_footprint(
    start: StartScheduler,
    make_host: MakeHost,
    client: RpcClient,
    ear: Ear,
    session: aiohttp.ClientSession,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """After a hundred requests the process is below its bound of memory; its metrics and its page count them."""
    await make_host(slots=100)
    asked = [instance() for _ in range(100)]
    async with start("one") as process:
        await send(client, *asked)
        for each in asked:
            await ear.outcome(each.uuid)

        async def counted() -> bool:
            # Counted once it is told, as the last thing about a request.
            async with session.get(f"{process.http}/metrics") as answer:
                return f"{_PLACED} 100.0" in await answer.text()

        await eventually(counted, within=PATIENCE, what="a hundred placed")
        async with session.get(process.http) as answer:
            page = read(await answer.text())
        rss = process.rss_mb
    with capsys.disabled():
        print(f" scheduler: {rss:.1f} MB resident, bound {MAX_RSS_MB}", end=" ")  # noqa: T201 - a figure to see
    assert rss < MAX_RSS_MB
    assert rows(page, "Decisions since the start") == [["placed", "", "100"]]


async def test_stop(start: StartScheduler, session: aiohttp.ClientSession) -> None:
    """SIGTERM ends it with status 0."""
    async with start("one") as process:
        process.process.terminate()
        async with asyncio.timeout(PATIENCE):
            assert await process.process.wait() == 0


async def test_hosts_command(
    start: StartScheduler, make_host: MakeHost, placement: Placement, client: RpcClient, ear: Ear
) -> None:
    """``sev-agent hosts`` shows each host with its node type, whether it is alive, its slots, and what it has left."""
    alive = await make_host(slots=3, generations=(Generation.SEV, Generation.SEV_ES))
    dead = await make_host(slots=2, alive=False)
    plain = await placement.create_provider("plain", uuid=uuid4())
    await placement.set_inventories(plain.uuid, plain.generation, {"VCPU": Inventory(total=4, max_unit=4)})
    asked = instance()
    async with start("one") as process:
        await send(client, asked)
        await ear.outcome(asked.uuid)
        fleet = json.loads(await process.command("hosts", "--json"))
        table = await process.command("hosts")

    shown = {host.pop("host"): host for host in fleet}
    assert shown[alive.name] == {
        "node_type": "sev",
        "enabled": True,
        "alive": True,
        "generations": {"amd-sev": {"used": 1, "limit": 3}, "amd-sev-es": {"used": 0, "limit": 3}},
        "mem_encryption_used_num": 1,
        "limit": 6,
        "ram_free_mb": 64_000 - 64 - OVERHEAD,
        "vcpus_free": 16 * 16 - 2,
        "disk_free_gb": 999,
    }
    assert (shown[dead.name]["node_type"], shown[dead.name]["alive"], shown[dead.name]["limit"]) == ("sev", False, 2)
    assert (shown["plain"]["node_type"], shown["plain"]["vcpus_free"]) == (None, 4)
    lines = {line.split()[0]: line for line in table.splitlines()}
    assert "amd-sev 1/3, amd-sev-es 0/3" in lines[alive.name]
