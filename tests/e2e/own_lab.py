"""A lab that a whole suite shares: brought up without a daemon, looked at from outside, and gone without a trace."""

import contextlib
import dataclasses
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from uuid import UUID

import aiohttp

from sev_agent.config import ServiceSection
from sev_agent.lab.accounts import admin
from sev_agent.lab.cloud import Lab
from sev_agent.lab.platform.emulator.kind import Kind
from sev_agent.messaging.broker import Broker
from sev_agent.messaging.client import RpcClient
from sev_agent.openstack.glance import Glance
from sev_agent.openstack.identity import KeystoneIdentity
from sev_agent.openstack.placement import Placement
from tests.e2e.agent_process import AgentProcess
from tests.e2e.cloud import Cloud
from tests.e2e.ear import MAX_BYTES
from tests.images import make_qcow2
from tests.running import running


@contextlib.asynccontextmanager
async def own_lab(
    prefix: str, *, slots: int, platforms: Sequence[Kind] = (), agents: bool = False, controllers: int = 1
) -> AsyncIterator[Lab]:
    """A lab with one host or one for each of ``platforms``; at its end nothing of it is left.

    There are ``controllers`` APIs and as many schedulers, and no host's daemon but with ``agents``.
    """
    # pytest's own directories are too deep for the address of a socket.
    directory = Path(tempfile.mkdtemp(prefix=prefix))
    lab = Lab(directory, cache=cache())
    try:
        hosts = max(1, len(platforms))
        control = {"apis": controllers, "schedulers": controllers}
        await lab.up(hosts=hosts, agents=agents, slots=slots, platforms=platforms, **control)
        yield lab
    finally:
        ended = await lab.down(purge=True)
        assert (ended.left, ended.mounts) == ((), ())
        shutil.rmtree(directory)


@contextlib.asynccontextmanager
async def on_its_broker(lab: Lab) -> AsyncIterator[tuple[Broker, RpcClient]]:
    """A connection to the broker of ``lab``, and a client that asks over it."""
    broker = Broker(lab.rabbit_url, connection_name="tests", connect_timeout=10, reconnect_max=1, publish_timeout=10)
    rpc = RpcClient(broker, max_message_bytes=MAX_BYTES)
    async with running(broker, rpc):
        yield broker, rpc


@contextlib.asynccontextmanager
async def seen_from_outside(lab: Lab, scratch: Path, *, index: int = 0) -> AsyncIterator[Cloud]:
    """``lab`` with a client for each of its services and a blank image, which is made in ``scratch``.

    ``index`` says which of its hosts is looked at.
    """
    async with contextlib.AsyncExitStack() as closing:
        session = await closing.enter_async_context(aiohttp.ClientSession())
        broker, rpc = await closing.enter_async_context(on_its_broker(lab))
        identity = KeystoneIdentity(session, admin(lab.cloud))
        host = lab.hosts[index]
        agent = AgentProcess(lab.directory, lab.agent_config(host), lab.http_url(host), session, name=f"agent-{index}")
        cloud = Cloud(
            lab=lab,
            agent=agent,
            broker=broker,
            rpc=rpc,
            glance=Glance(session, identity, ServiceSection(endpoint=lab.glance_url)),
            placement=Placement(session, identity, ServiceSection(endpoint=lab.placement_url)),
            blank=UUID(int=0),
            index=index,
        )
        blank = await cloud.upload(make_qcow2(scratch / "blank.qcow2"))
        yield dataclasses.replace(cloud, blank=blank)
        if agent.is_running:
            assert await agent.stop() == 0


def cache() -> Path | None:
    given = os.environ.get("SEV_AGENT_LAB_CACHE")
    return Path(given) if given else None
