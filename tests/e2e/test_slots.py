"""One guest more than the platform has room for."""

import os
from typing import Any
from uuid import UUID

import pytest

from tests.e2e.agent_process import AgentProcess
from tests.e2e.cloud import Cloud
from tests.e2e.ear import Ear

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_placement_refuses_one_guest_too_many(agent: AgentProcess, cloud: Cloud, ear: Ear) -> None:
    """With every slot counted, the next build ends as placement.full with a remedy; the others run on."""
    guests = {await cloud.build() for _ in range(cloud.slots - await cloud.slots_used())}
    assert await cloud.slots_used() == cloud.slots
    fault = await _failed(cloud, ear, "placement.full")
    assert "MEM_ENCRYPTION_CONTEXT" in fault["message"]
    assert guests <= await cloud.domains(running=True)
    assert await cloud.slots_used() == cloud.slots


async def test_firmware_refuses_one_guest_too_many(agent: AgentProcess, cloud: Cloud, ear: Ear) -> None:
    """With slots taken that nobody counts, the firmware's own refusal ends the build as hypervisor.no_slot."""
    held = [cloud.host.firmware_slots.take("sev", {})[0] for _ in range(cloud.slots - cloud.firmware_slots_used())]
    try:
        before = await cloud.slots_used()
        assert before < cloud.slots
        fault = await _failed(cloud, ear, "hypervisor.no_slot")
        assert "does not start" in fault["message"]
        assert await cloud.slots_used() == before
    finally:
        for descriptor in held:
            os.close(descriptor)
    assert await cloud.runs(await cloud.build())


async def _failed(cloud: Cloud, ear: Ear, code: str) -> dict[str, Any]:
    """The fault of a build that finds no slot, after which nothing is left of it."""
    request = cloud.request()
    uuid = UUID(request["uuid"])
    await cloud.order("build_and_run_instance", instance=request)
    fault: dict[str, Any] = (await cloud.reached(uuid, "error"))["fault"]
    assert fault["code"] == code
    assert fault["retryable"]
    assert fault["remedy"]
    assert (await ear.hear(uuid, "create.error")).payload["fault"] == fault
    assert await cloud.left(uuid) == []
    return fault
