"""A deletion that comes while a build is under way, or when the guest has gone another way."""

from pathlib import Path

import pytest

from sev_agent.domain.identity import domain_name
from tests.e2e.agent_process import AgentProcess
from tests.e2e.cloud import Cloud
from tests.e2e.downloads import StallingProxy, begin_download, upload_big
from tests.e2e.ear import Ear

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_delete_during_the_download(
    agent: AgentProcess, cloud: Cloud, ear: Ear, glance_proxy: StallingProxy, tmp_path: Path
) -> None:
    """A delete ends a build that still downloads: its end is told, no create.end follows, nothing is left."""
    image = await upload_big(cloud, tmp_path)
    await agent.stop()
    await agent.start(glance__endpoint=f"http://127.0.0.1:{glance_proxy.port}")
    uuid, half = await begin_download(cloud, glance_proxy, image)
    await cloud.delete(uuid)
    await ear.hear(uuid, "sev.instance.delete.end")
    assert not half.exists()
    assert await cloud.left(uuid) == []
    assert [each for each in ear.about(uuid) if each.event_type.startswith("sev.instance.create.e")] == []


async def test_delete_right_behind_the_build(agent: AgentProcess, cloud: Cloud, ear: Ear) -> None:
    """A delete cast right behind its build is never taken before it, and leaves nothing."""
    requests = [cloud.request() for _ in range(cloud.slots)]
    for request in requests:
        await cloud.cast("build_and_run_instance", instance=request)
        await cloud.cast("terminate_instance", instance_uuid=request["uuid"])
    for request in requests:
        await ear.hear(request["uuid"], "sev.instance.delete.start")
        await ear.hear(request["uuid"], "sev.instance.delete.end")
        await cloud.gone(request["uuid"])
        assert await cloud.left(request["uuid"]) == []
    assert await cloud.slots_used() == 0


@pytest.mark.parametrize("commands", [("destroy",), ("destroy", "undefine --nvram")], ids=["ended", "undefined"])
async def test_delete_of_what_somebody_else_ended(agent: AgentProcess, cloud: Cloud, commands: tuple[str, ...]) -> None:
    """A guest that somebody destroyed, or undefined too, is deleted like any other."""
    uuid = await cloud.build()
    for command in commands:
        name, *options = command.split()
        ended = await cloud.virsh(name, domain_name(uuid), *options)
        assert ended.status == 0, ended.errors
    await cloud.delete(uuid)
    assert await cloud.left(uuid) == []
