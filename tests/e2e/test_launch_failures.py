"""Every failure that the platform can meet at a launch: its own text, and nothing left behind."""

import asyncio
from uuid import UUID

import pytest

from sev_agent.lab.platform.emulator.failures import FAILURES
from tests.e2e.agent_process import AgentProcess
from tests.e2e.cloud import Cloud
from tests.e2e.ear import Ear

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest.mark.parametrize("name", FAILURES)
async def test_failure(name: str, agent: AgentProcess, cloud: Cloud, ear: Ear) -> None:
    """A launch that fails is told by its layer, its cause and a remedy; disk, domain, slot and claim are gone."""
    before = await cloud.slots_used()
    held = await asyncio.to_thread(cloud.firmware_slots_used)
    request = cloud.request()
    uuid = UUID(request["uuid"])
    await asyncio.to_thread(cloud.host.failures.arm, name, 1)
    try:
        await cloud.order("build_and_run_instance", instance=request)
        fault = (await cloud.reached(uuid, "error"))["fault"]
    finally:
        await asyncio.to_thread(cloud.host.failures.disarm)
    assert "does not start, because of " in fault["message"]
    said = FAILURES[name].error(snp=False).args[0]
    assert said in fault["message"]
    assert fault["code"].startswith(("launch.", "hypervisor.no_"))
    assert fault["retryable"]
    assert fault["remedy"]
    assert (await ear.hear(uuid, "create.error")).payload["fault"] == fault
    assert await cloud.left(uuid) == []
    assert await cloud.slots_used() == before
    assert await asyncio.to_thread(cloud.firmware_slots_used) == held
