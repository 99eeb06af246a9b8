"""Every failure that the platform can meet at a launch: its own text, and nothing left behind."""

import asyncio
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from sev_agent.lab.platform.emulator.failures import FAILURES
from sev_agent.sev.generation import Generation
from tests.e2e.agent_process import AgentProcess
from tests.e2e.cloud import Cloud
from tests.e2e.ear import Ear
from tests.images import make_qcow2

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


async def test_failures_of_es(es_cloud: Cloud) -> None:
    """Each of them fails a guest of SEV-ES too, and leaves nothing behind."""
    await _check_failures(es_cloud, Generation.SEV_ES, es_cloud.blank)


async def test_failures_of_snp(snp_cloud: Cloud, tmp_path: Path) -> None:
    """Each of them fails a guest of SEV-SNP too, in the words of its own commands, and leaves nothing behind."""
    path = await asyncio.to_thread(make_qcow2, tmp_path / "blank.qcow2")
    image = await snp_cloud.upload(path, hw_firmware_stateless="true")
    await _check_failures(snp_cloud, Generation.SEV_SNP, image)


async def _check_failures(cloud: Cloud, generation: Generation, image: UUID) -> None:
    specs = {"hw:mem_encryption": "true", "hw:mem_encryption_model": generation.value}
    wanted = [cloud.request(image__id=str(image), flavor__extra_specs=specs) for _ in FAILURES]
    for name in FAILURES:
        await asyncio.to_thread(cloud.host.failures.arm, name, 1)
    faults: list[dict[str, Any]] = []
    try:
        # Each launch meets another failure; no more of them at once than there are slots.
        for first in range(0, len(wanted), cloud.slots):
            faults += await asyncio.gather(*(_fault(cloud, each) for each in wanted[first : first + cloud.slots]))
    finally:
        await asyncio.to_thread(cloud.host.failures.disarm)
    for failure in FAILURES.values():
        said = failure.error(snp=generation is Generation.SEV_SNP).args[0]
        (fault,) = [each for each in faults if said in each["message"]]
        assert fault["code"].startswith(("launch.", "hypervisor.no_"))
        assert fault["retryable"]
        assert fault["remedy"]
    assert await cloud.slots_used(generation) == 0
    assert await asyncio.to_thread(cloud.firmware_slots_used, "sev_es") == 0


async def _fault(cloud: Cloud, wanted: dict[str, Any]) -> dict[str, Any]:
    await cloud.order("build_and_run_instance", instance=wanted)
    fault: dict[str, Any] = (await cloud.reached(wanted["uuid"], "error"))["fault"]
    assert await cloud.left(wanted["uuid"]) == []
    return fault
