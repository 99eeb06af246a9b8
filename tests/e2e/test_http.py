"""What the daemon tells over HTTP: health, readiness with reasons, and the metrics that operators need."""

import json
from uuid import uuid4

import pytest

from sev_agent.observe.health import OF_A_HOST
from tests.e2e.agent_process import AgentProcess
from tests.e2e.cloud import Cloud
from tests.e2e.waiting import eventually
from tests.status_page import read, rows

pytestmark = pytest.mark.asyncio(loop_scope="session")

STEPS = {"record", "image", "claim", "cache", "disk", "config_drive", "firmware", "define", "start"}


async def test_healthz(agent: AgentProcess) -> None:
    """/healthz says that the daemon's own parts turn."""
    status, text = await agent.get("/healthz")
    assert (status, json.loads(text)) == (200, {"alive": True})


async def test_readyz_names_every_dependency(agent: AgentProcess) -> None:
    """/readyz says yes, and tells of each since when it is up."""
    status, text = await agent.get("/readyz")
    answer = json.loads(text)
    assert (status, answer["ready"]) == (200, True)
    assert set(answer["dependencies"]) == set(OF_A_HOST)
    assert all(each["up"] and each["since"] for each in answer["dependencies"].values())


async def test_readyz_tells_the_reason_of_each(agent: AgentProcess, cloud: Cloud) -> None:
    """A daemon that reaches nothing answers /readyz with 503 and a reason for each dependency; its page tells them."""
    await agent.stop()
    nowhere = "http://127.0.0.1:1"
    await agent.launch(
        hypervisor__uri="qemu+unix:///system?socket=/nonexistent/libvirt-sock",
        messaging__url="amqp://guest:guest@127.0.0.1:1/",
        placement__endpoint=nowhere,
        auth__auth_url=nowhere,
    )

    async def reasons() -> dict[str, str] | None:
        status, text = await agent.get("/readyz")
        if status != 503:
            return None
        found = {name: each["reason"] for name, each in json.loads(text)["dependencies"].items()}
        return found if "nonexistent" in found["libvirt"] and "127.0.0.1:1" in found["broker"] else None

    found = await eventually(reasons, within=15, what="reasons")
    assert found is not None
    assert all(found.values())
    assert (await agent.get("/healthz"))[0] == 200
    status, text = await agent.get("/")
    shown = {row[0]: (row[1], row[4]) for row in rows(read(text), "What it leans on")}
    assert status == 200
    assert shown.keys() == found.keys()
    assert shown["libvirt"][0] == "down"
    assert "nonexistent" in shown["libvirt"][1]
    assert await agent.stop() == 0


async def test_metrics_of_slots_and_domains(agent: AgentProcess, cloud: Cloud) -> None:
    """The metrics tell slots total and used by generation, and domains by state; and so does the page for people."""
    before = await agent.metrics()
    assert before("sev_agent_slots_total", generation="amd-sev") == cloud.slots
    assert before("sev_agent_slots_used", generation="amd-sev") == 0
    uuid = await cloud.build()

    async def seen() -> bool:
        metrics = await agent.metrics()
        return metrics("sev_agent_domains", state="running", encrypted="true") == 1

    await eventually(seen, within=5, what="the domain is counted")
    after = await agent.metrics()
    assert after("sev_agent_slots_used", generation="amd-sev") == 1
    assert after("sev_agent_instances", state="active") == 1
    status, text = await agent.get("/")
    page = read(text)
    assert (status, page.findtext(".//strong")) == (200, "ready")
    assert rows(page, "Encryption slots")[0][:4] == ["amd-sev", str(cloud.slots), "1", str(cloud.slots - 1)]
    assert ["running", "1", "0"] in rows(page, "Domains of libvirt, as last seen")
    assert [str(uuid), "active", "amd-sev"] in [row[:3] for row in rows(page, "Instances")]
    assert rows(page, "Comparisons with Placement since the start")


async def test_metrics_of_builds(agent: AgentProcess, cloud: Cloud) -> None:
    """The metrics count builds by outcome, and time each step and the whole."""
    before = await agent.metrics()
    await cloud.build()
    bad = cloud.request(image__id=str(uuid4()))
    await cloud.order("build_and_run_instance", instance=bad)
    await cloud.reached(bad["uuid"], "error")
    await agent.counted(before, "sev_agent_builds_total", outcome="active")
    await agent.counted(before, "sev_agent_builds_total", outcome="error", code="image.not_found")
    after = await agent.metrics()

    def grown(metric: str, **labels: str) -> float:
        return after(metric, **labels) - before(metric, **labels)

    assert grown("sev_agent_build_seconds_count") == 1
    assert after.labels("sev_agent_build_step_seconds_count", "step") >= STEPS
    assert grown("sev_agent_build_step_seconds_count", step="start") == 1
    assert grown("sev_agent_build_step_seconds_sum", step="start") > 0


async def test_metrics_of_reconciliations_and_dependencies(agent: AgentProcess) -> None:
    """The metrics count reconciliations by outcome, and say for each dependency whether it is up."""
    metrics = await agent.metrics()
    assert metrics("sev_agent_reconciliations_total") >= 1
    assert metrics("sev_agent_last_reconciliation_timestamp_seconds") > 0
    assert metrics.labels("sev_agent_dependency_up", "dependency") == set(OF_A_HOST)
    assert metrics("sev_agent_dependency_up") == len(OF_A_HOST)
    assert metrics("sev_agent_ready") == 1
