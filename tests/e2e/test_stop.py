"""SIGTERM: an end within its bound, guests untouched, and the rest is the next start's."""

import json
import time
from uuid import UUID

import pytest

from tests.e2e.agent_process import AgentProcess
from tests.e2e.cloud import Cloud
from tests.e2e.downloads import StallingProxy

pytestmark = pytest.mark.asyncio(loop_scope="session")

IDLE_SECONDS = 2.0
STOP_TIMEOUT = 1.0
MARGIN = 2.0
"""Seconds that the other parts of the daemon may take for their own end."""


async def test_idle_daemon_stops_at_once(agent: AgentProcess, cloud: Cloud) -> None:
    """SIGTERM of an idle daemon ends it with status 0 within two seconds, and takes its consumer away."""
    started = time.monotonic()
    assert await agent.stop() == 0
    assert time.monotonic() - started < IDLE_SECONDS
    assert await cloud.consumers() == 0


async def test_stop_during_a_build_that_hangs(agent: AgentProcess, cloud: Cloud, glance_proxy: StallingProxy) -> None:
    """SIGTERM ends the daemon within its bound; guests run on, and the next start finishes the build."""
    await agent.stop()
    await agent.start(glance__endpoint=f"http://127.0.0.1:{glance_proxy.port}", builds__stop_timeout=STOP_TIMEOUT)
    guest = await cloud.build()
    processes = cloud.processes(guest)
    glance_proxy.freeze()
    request = cloud.request()
    await cloud.order("build_and_run_instance", instance=request)
    started = time.monotonic()
    assert await agent.stop() == 0
    assert time.monotonic() - started < STOP_TIMEOUT + MARGIN
    assert cloud.processes(guest) == processes != []
    record = cloud.files(UUID(request["uuid"])).record
    assert json.loads(record.read_text())["state"] == "building"
    await agent.start()
    await cloud.reached(UUID(request["uuid"]), "active")
    assert cloud.processes(guest) == processes


async def test_stop_during_builds_that_go_on(agent: AgentProcess, cloud: Cloud) -> None:
    """SIGTERM during builds loses none of them: finished before the end or after the next start, each runs once."""
    requests = [cloud.request() for _ in range(3)]
    for request in requests:
        await cloud.order("build_and_run_instance", instance=request)
    assert await agent.stop() == 0
    await agent.start()
    for request in requests:
        uuid = UUID(request["uuid"])
        await cloud.reached(uuid, "active")
        assert len(cloud.processes(uuid)) == 1
    assert await cloud.slots_used() == 3
