"""``sev-agent check`` on a lab's host: its files are simulated, libvirt, Placement and RabbitMQ are real."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from sev_agent.host.layer import Layer
from tests.e2e.cloud import Cloud, run

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def check(cloud: Cloud, **environment: str) -> tuple[int, dict[str, Any]]:
    script = Path(sys.executable).with_name("sev-agent")
    usual = {name: value for name, value in os.environ.items() if not name.startswith("SEV_AGENT_")}
    config = cloud.lab.agent_config(cloud.host)
    result = await run(script, "check", "--config", config, "--json", environment={**usual, **environment})
    return result.status, json.loads(result.output)


async def test_a_host_of_the_lab_is_ready(cloud: Cloud) -> None:
    """Every layer answers, and says that the platform is simulated; libvirt offers SEV through the real interface."""
    status, answer = await check(cloud)
    failed = [found for found in answer["checks"] if found["outcome"] == "failed" and "amd-sev" in found["generations"]]
    assert failed == []
    assert (status, answer["ready"], answer["simulated"]) == (0, True, True)
    passed = {found["name"] for found in answer["checks"] if found["outcome"] == "passed"}
    assert {"libvirt.sev", "qemu.version_sev", "ovmf.sev", "placement.reachable", "rabbitmq.reachable"} <= passed


@pytest.mark.parametrize(
    ("variable", "value", "layer"),
    [
        ("SEV_AGENT_MESSAGING__URL", "amqp://nobody:wrong@127.0.0.1:1/", Layer.RABBITMQ),
        ("SEV_AGENT_PLACEMENT__ENDPOINT", "http://127.0.0.1:1", Layer.PLACEMENT),
        ("SEV_AGENT_AUTH__PASSWORD", "wrong", Layer.PLACEMENT),
        ("SEV_AGENT_HYPERVISOR__URI", "qemu+unix:///system?socket=/nowhere", Layer.LIBVIRT),
    ],
)
async def test_a_service_that_does_not_answer(cloud: Cloud, variable: str, value: str, layer: Layer) -> None:
    """It is the layer to mend first, and the host is not ready without it."""
    status, answer = await check(cloud, **{variable: value})
    assert status == 1
    assert answer["mend_first"]["layer"] == layer
    assert answer["mend_first"]["remedy"]
