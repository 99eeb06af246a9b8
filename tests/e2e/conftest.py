"""One lab with one host for all tests here, and the daemon of that host in their hands."""

import asyncio
import contextlib
import dataclasses
import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID

import aiohttp
import pytest
import pytest_asyncio

from sev_agent.config import ServiceSection
from sev_agent.lab.accounts import admin
from sev_agent.lab.cloud import Lab
from sev_agent.messaging.broker import Broker
from sev_agent.messaging.client import RpcClient
from sev_agent.openstack.glance import Glance
from sev_agent.openstack.identity import KeystoneIdentity
from sev_agent.openstack.placement import Placement
from tests.e2e.agent_process import AgentProcess
from tests.e2e.cloud import Cloud
from tests.e2e.downloads import StallingProxy
from tests.e2e.ear import MAX_BYTES, Ear, listening
from tests.images import make_qcow2
from tests.proxy import Proxy

SLOTS = 4
_LOG_LINES = 60


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def lab() -> AsyncIterator[Lab]:
    """A lab without a daemon; at its end no process and no mount of it may be left."""
    # pytest's own directories are too deep for the address of a socket.
    directory = Path(tempfile.mkdtemp(prefix="sev-e2e-"))
    lab = Lab(directory, cache=_cache())
    try:
        await lab.up(hosts=1, agents=False, slots=SLOTS)
        yield lab
    finally:
        ended = await lab.down(purge=True)
        assert (ended.left, ended.mounts) == ((), ())
        shutil.rmtree(directory)


def _cache() -> Path | None:
    given = os.environ.get("SEV_AGENT_LAB_CACHE")
    return Path(given) if given else None


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def cloud(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cloud]:
    async with contextlib.AsyncExitStack() as closing:
        session = await closing.enter_async_context(aiohttp.ClientSession())
        broker = Broker(
            lab.rabbit_url, connection_name="tests", connect_timeout=10, reconnect_max=1, publish_timeout=10
        )
        rpc = RpcClient(broker, max_message_bytes=MAX_BYTES)
        for component in (broker, rpc):
            closing.push_async_callback(_end, asyncio.create_task(component.run(), name=type(component).__name__))
        identity = KeystoneIdentity(session, admin(lab.cloud))
        host = lab.hosts[0]
        agent = AgentProcess(lab.directory, lab.agent_config(host), lab.http_url(host), session)
        cloud = Cloud(
            lab=lab,
            agent=agent,
            broker=broker,
            rpc=rpc,
            glance=Glance(session, identity, ServiceSection(endpoint=lab.glance_url)),
            placement=Placement(session, identity, ServiceSection(endpoint=lab.placement_url)),
            blank=UUID(int=0),
        )
        blank = await cloud.upload(make_qcow2(tmp_path_factory.mktemp("image") / "blank.qcow2"))
        yield dataclasses.replace(cloud, blank=blank)
        if agent.is_running:
            assert await agent.stop() == 0


async def _end(task: "asyncio.Task[None]") -> None:
    task.cancel()
    await asyncio.wait({task})


@pytest_asyncio.fixture(loop_scope="session")
async def agent(cloud: Cloud) -> AsyncIterator[AgentProcess]:
    """The daemon, ready and with its usual settings. What a test leaves is deleted, and must then be gone."""
    agent = cloud.agent
    await _usual(agent)
    agent.forget_log()
    yield agent
    print("\n".join(agent.said().splitlines()[-_LOG_LINES:]))  # noqa: T201 - pytest shows it where a test failed
    await _usual(agent)
    listed = [UUID(view["uuid"]) for view in await cloud.ask("list_instances")]
    for uuid in set(listed) - cloud.kept:
        await cloud.delete(uuid)
        assert await cloud.left(uuid) == []
    assert await cloud.domains() <= cloud.kept
    await cloud.dead_letters()


async def _usual(agent: AgentProcess) -> None:
    if agent.is_running and not agent.has_defaults:
        await agent.stop()
    if not agent.is_running:
        await agent.start()
    await agent.wait_ready()


@pytest_asyncio.fixture(loop_scope="session")
async def ear(cloud: Cloud) -> AsyncIterator[Ear]:
    async with listening(cloud.broker) as ear:
        yield ear


@pytest_asyncio.fixture(loop_scope="session")
async def glance_proxy(cloud: Cloud) -> AsyncIterator[StallingProxy]:
    """Stands before Glance for a daemon whose ``glance__endpoint`` names it."""
    async with StallingProxy(cloud.lab.cloud.ports["glance"]) as proxy:
        yield proxy


@pytest_asyncio.fixture(loop_scope="session")
async def placement_proxy(cloud: Cloud) -> AsyncIterator[Proxy]:
    """Stands before Placement for a daemon whose ``placement__endpoint`` names it."""
    async with Proxy(cloud.lab.cloud.ports["placement"]) as proxy:
        yield proxy
