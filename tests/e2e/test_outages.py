"""libvirtd, RabbitMQ and Placement go away and come back: the daemon says so, waits, and goes on."""

import json
import os
import signal
import time
from typing import Any
from uuid import UUID

import pytest

from sev_agent.messaging.client import RemoteError
from tests.e2e.agent_process import AgentProcess
from tests.e2e.cloud import Cloud
from tests.e2e.waiting import eventually

pytestmark = pytest.mark.asyncio(loop_scope="session")

BACK_SECONDS = 10.0


async def test_libvirtd_killed_and_restarted(agent: AgentProcess, cloud: Cloud) -> None:
    """Without libvirtd the host takes no work and says why; with it, all is as before within ten seconds."""
    uuid = await cloud.build()
    os.kill(int((cloud.host.directory / "run/libvirtd.pid").read_text()), signal.SIGKILL)
    try:
        condition = await _down(agent, "libvirt")
        assert condition["reason"]
        await eventually(lambda: _consumers(cloud, 0), within=BACK_SECONDS, what="no consumer of the work queue")
        assert (await agent.get("/healthz"))[0] == 200
        assert (await agent.metrics())("sev_agent_dependency_up", dependency="libvirt") == 0
        view = await cloud.view(uuid)
        assert view is not None
        assert view["state"] == "active"
        status = await cloud.ask("get_host_status")
        assert not status["ready"]
        assert status["dependencies"]["libvirt"]["reason"]
        assert not status["dependencies"]["work_queue"]["up"]
        with pytest.raises(RemoteError) as caught:
            await cloud.ask("reconcile", dry_run=True)
        assert caught.value.code == "hypervisor.unavailable"
        waiting = cloud.request()
        await cloud.cast("build_and_run_instance", instance=waiting)
    finally:
        await cloud.supervisor.start(cloud.service(f"{cloud.host.name}-libvirtd"))
    await agent.wait_ready(within=BACK_SECONDS)
    await eventually(lambda: _consumers(cloud, 1), within=BACK_SECONDS, what="a consumer of the work queue")
    assert await cloud.runs(uuid)
    await eventually(lambda: cloud.view(UUID(waiting["uuid"])), within=BACK_SECONDS, what="the work that waited")
    await cloud.reached(UUID(waiting["uuid"]), "active")
    assert await cloud.slots_used() == 2
    assert (await agent.metrics())("sev_agent_slots_used", generation="amd-sev") == 2


async def test_guest_that_ended_meanwhile_is_found(agent: AgentProcess, cloud: Cloud) -> None:
    """A guest that ends while libvirtd is away gives its slot back soon after libvirtd's return."""
    uuid = await cloud.build()
    (process,) = cloud.processes(uuid)
    os.kill(int((cloud.host.directory / "run/libvirtd.pid").read_text()), signal.SIGKILL)
    try:
        await _down(agent, "libvirt")
        os.kill(process, signal.SIGKILL)
    finally:
        await cloud.supervisor.start(cloud.service(f"{cloud.host.name}-libvirtd"))

    async def released() -> bool:
        return await cloud.slots_used() == 0

    await eventually(released, within=BACK_SECONDS, what="the slot is released")


async def test_rabbitmq_stopped_and_started(agent: AgentProcess, cloud: Cloud) -> None:
    """Without RabbitMQ the daemon says so and guests run on; with it, it takes work again by itself."""
    uuid = await cloud.build()
    node = cloud.service("rabbitmq")
    await cloud.supervisor.stop(node)
    try:
        condition = await _down(agent, "broker")
        assert condition["reason"]
        assert (await agent.get("/healthz"))[0] == 200
        assert (await agent.metrics())("sev_agent_dependency_up", dependency="broker") == 0
        assert cloud.processes(uuid) != []
    finally:
        await cloud.supervisor.start(node)
    await agent.wait_ready(within=BACK_SECONDS)
    await cloud.broker.wait_up(BACK_SECONDS)
    assert await cloud.runs(await cloud.build())


async def test_placement_stopped_and_started(agent: AgentProcess, cloud: Cloud) -> None:
    """A build without Placement ends in error with a remedy, is told of, and leaves nothing once Placement is back."""
    await agent.stop()
    await agent.start(reconciler__interval=1, reconciler__jitter=0)
    guest = await cloud.build()
    placement = cloud.service("placement")
    await cloud.supervisor.stop(placement)
    request = cloud.request()
    try:
        condition = await _down(agent, "placement")
        assert condition["reason"]
        assert cloud.processes(guest) != []
        await cloud.order("build_and_run_instance", instance=request)
    finally:
        await cloud.supervisor.start(placement)
    await agent.wait_ready(within=BACK_SECONDS)
    view = await cloud.reached(UUID(request["uuid"]), "error")
    assert view["fault"]["retryable"]
    assert view["fault"]["remedy"]
    assert await cloud.left(UUID(request["uuid"])) == []
    assert await cloud.slots_used() == 1


async def _down(agent: AgentProcess, dependency: str) -> dict[str, Any]:
    """The condition of the dependency once /readyz says that it is down."""

    async def down() -> dict[str, Any] | None:
        status, text = await agent.get("/readyz")
        answer = json.loads(text)
        condition: dict[str, Any] = answer["dependencies"][dependency]
        if condition["up"]:
            return None
        assert (status, answer["ready"]) == (503, False)
        return condition

    began = time.monotonic()
    condition = await eventually(down, within=BACK_SECONDS, what=f"{dependency} is down")
    assert time.monotonic() - began < BACK_SECONDS
    assert condition is not None
    return condition


async def _consumers(cloud: Cloud, expected: int) -> bool:
    return await cloud.consumers() == expected
