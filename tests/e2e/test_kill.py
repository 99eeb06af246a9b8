"""SIGKILL of the daemon at any moment: what was accepted is finished after the next start, once."""

import asyncio
import json
import signal
from functools import partial
from pathlib import Path
from uuid import UUID

import pytest

from sev_agent.domain.identity import domain_name
from tests.e2e.agent_process import AgentProcess
from tests.e2e.cloud import Cloud
from tests.e2e.downloads import StallingProxy, begin_download, upload_big
from tests.e2e.ear import Ear
from tests.e2e.waiting import eventually
from tests.proxy import Proxy

pytestmark = pytest.mark.asyncio(loop_scope="session")

_ATTEMPTS = 5


async def test_killed_right_after_acceptance(
    agent: AgentProcess, cloud: Cloud, ear: Ear, glance_proxy: StallingProxy
) -> None:
    """A build that was accepted and had not begun runs after a restart, once, and is told of."""
    uuid = await _begin_and_freeze(agent, cloud, glance_proxy)
    await agent.kill()
    assert _recorded_state(cloud, uuid) == "building"
    await _restarted(agent, cloud, uuid)
    await ear.hear(uuid, "create.end")


async def test_killed_during_the_download(
    agent: AgentProcess, cloud: Cloud, glance_proxy: StallingProxy, tmp_path: Path
) -> None:
    """A build whose image was half here runs after a restart, once, and the half is gone."""
    image = await upload_big(cloud, tmp_path)
    await agent.stop()
    await agent.start(glance__endpoint=f"http://127.0.0.1:{glance_proxy.port}")
    uuid, half = await begin_download(cloud, glance_proxy, image)
    await agent.kill()
    assert half.exists()
    await _restarted(agent, cloud, uuid)
    assert not half.exists()


async def test_killed_between_define_and_start(agent: AgentProcess, cloud: Cloud) -> None:
    """A guest that libvirt knew and that did not run yet, runs after a restart, once."""
    uuid = await _killed_when(agent, cloud, cloud.host.directory / "etc/libvirt/qemu")

    async def defined_only() -> bool:
        # The daemon may have asked for the start just before it was stopped.
        await cloud.virsh("destroy", domain_name(uuid))
        return not cloud.processes(uuid) and not await cloud.runs(uuid)

    await eventually(defined_only, within=20, what="the guest is defined and does not run")
    assert uuid in await cloud.domains()
    await _restarted(agent, cloud, uuid)


async def test_killed_right_after_the_start(agent: AgentProcess, cloud: Cloud, ear: Ear) -> None:
    """A guest that started without the daemon having noted it is the same guest after a restart."""
    uuid = await _killed_when(agent, cloud, cloud.host.directory / "run/qemu")
    await eventually(lambda: cloud.runs(uuid), within=20, what="libvirt has started the guest")
    processes = cloud.processes(uuid)
    await _restarted(agent, cloud, uuid)
    assert cloud.processes(uuid) == processes
    await ear.hear(uuid, "create.end")


async def test_killed_at_many_builds(agent: AgentProcess, cloud: Cloud) -> None:
    """Of several builds at different steps all run after a restart, each once."""
    requests = [cloud.request() for _ in range(cloud.slots)]
    for request in requests:
        await cloud.order("build_and_run_instance", instance=request)
    await eventually(cloud.domains, within=20, what="the first domain", every=0.01)
    await agent.kill()
    await agent.start()
    for request in requests:
        await _runs_once(cloud, UUID(request["uuid"]))
    assert await cloud.slots_used() == cloud.slots


async def test_delete_is_finished_after_a_kill(agent: AgentProcess, cloud: Cloud, placement_proxy: Proxy) -> None:
    """A delete that was accepted before the kill is finished after the restart."""
    await agent.stop()
    await agent.start(placement__endpoint=f"http://127.0.0.1:{placement_proxy.port}")
    uuid = await cloud.build()
    before = await cloud.slots_used()
    placement_proxy.freeze()
    await cloud.order("terminate_instance", instance_uuid=str(uuid))
    await agent.kill()
    assert _recorded_state(cloud, uuid) == "deleting"
    placement_proxy.thaw()
    await agent.start()
    await cloud.gone(uuid)
    assert await cloud.left(uuid) == []
    assert await cloud.slots_used() == before - 1


async def _begin_and_freeze(agent: AgentProcess, cloud: Cloud, glance_proxy: StallingProxy) -> UUID:
    """A build that is accepted, and gets no further than its first question to Glance."""
    await agent.stop()
    await agent.start(glance__endpoint=f"http://127.0.0.1:{glance_proxy.port}")
    glance_proxy.freeze()
    request = cloud.request()
    await cloud.order("build_and_run_instance", instance=request)
    return UUID(request["uuid"])


async def _killed_when(agent: AgentProcess, cloud: Cloud, directory: Path) -> UUID:
    """A build whose daemon is stopped, then killed, as libvirt writes the domain's file in ``directory``."""
    for _ in range(_ATTEMPTS):
        request = cloud.request()
        uuid = UUID(request["uuid"])
        await cloud.order("build_and_run_instance", instance=request)
        exists = partial(asyncio.to_thread, (directory / f"{domain_name(uuid)}.xml").exists)
        await eventually(exists, within=20, what="libvirt's file of the domain", every=0.001)
        # Stopped first, so that it cannot go on while it is being looked at and killed.
        agent.signal(signal.SIGSTOP)
        if _recorded_state(cloud, uuid) == "building":
            await agent.kill()
            return uuid
        # On a busy machine the moment may pass before it is seen.
        agent.signal(signal.SIGCONT)
        await cloud.delete(uuid)
    pytest.fail(f"the moment was missed {_ATTEMPTS} times")


async def _restarted(agent: AgentProcess, cloud: Cloud, uuid: UUID) -> None:
    await agent.start()
    await _runs_once(cloud, uuid)


async def _runs_once(cloud: Cloud, uuid: UUID) -> None:
    await cloud.reached(uuid, "active")
    assert await cloud.runs(uuid)
    assert len(cloud.processes(uuid)) == 1
    held = await cloud.placement.allocation(uuid)
    assert held is not None
    assert held.consumer_type == "INSTANCE"
    assert held.resources[(await cloud.child()).uuid] == {"MEM_ENCRYPTION_CONTEXT": 1}


def _recorded_state(cloud: Cloud, uuid: UUID) -> str:
    return str(json.loads(cloud.files(uuid).record.read_text())["state"])
