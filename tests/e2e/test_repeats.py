"""The same request again, another one with the same UUID, and a UUID that libvirt has already."""

from pathlib import Path
from uuid import UUID, uuid4

import pytest

from sev_agent.domain.identity import domain_name
from sev_agent.messaging.client import RemoteError
from tests.e2e.agent_process import AgentProcess
from tests.e2e.cloud import Cloud
from tests.e2e.ear import Ear
from tests.e2e.test_placement import write_stranger

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_same_build_again_is_a_success(agent: AgentProcess, cloud: Cloud, ear: Ear) -> None:
    """A second build with the same UUID and content succeeds and changes nothing."""
    request = cloud.request()
    uuid = UUID(request["uuid"])
    await cloud.order("build_and_run_instance", instance=request)
    await cloud.reached(uuid, "active")
    before, processes = await cloud.slots_used(), cloud.processes(uuid)
    assert await cloud.order("build_and_run_instance", instance=request) == {"uuid": str(uuid), "state": "active"}
    assert (await cloud.slots_used(), cloud.processes(uuid)) == (before, processes)
    assert len(ear.about(uuid, "create.start")) == 1
    await cloud.delete(uuid)


async def test_same_build_twice_at_once_makes_one_guest(agent: AgentProcess, cloud: Cloud) -> None:
    """The same cast twice in a row makes one guest."""
    request = cloud.request()
    uuid = UUID(request["uuid"])
    for _ in range(2):
        await cloud.cast("build_and_run_instance", instance=request)
    await cloud.order("build_and_run_instance", instance=request)
    await cloud.reached(uuid, "active")
    assert len(cloud.processes(uuid)) == 1


async def test_other_build_with_the_same_uuid_is_refused(agent: AgentProcess, cloud: Cloud, ear: Ear) -> None:
    """A second build with the same UUID and other content is refused, told and counted; the guest stays."""
    request = cloud.request()
    uuid = UUID(request["uuid"])
    await cloud.order("build_and_run_instance", instance=request)
    await cloud.reached(uuid, "active")
    before = await agent.metrics()
    other = {**request, "name": "other"}
    with pytest.raises(RemoteError) as caught:
        await cloud.order("build_and_run_instance", instance=other)
    assert (caught.value.code, caught.value.field) == ("instance.exists", "instance.uuid")
    assert caught.value.remedy
    await cloud.cast("build_and_run_instance", instance=other)
    told = await ear.hear(uuid, "create.error")
    assert isinstance(told.payload["fault"], dict)
    assert told.payload["fault"]["code"] == "instance.exists"
    # The call and the cast, each once.
    await agent.counted(before, "sev_agent_builds_total", times=2, outcome="refused", code="instance.exists")
    assert await cloud.runs(uuid)


async def test_delete_of_what_is_gone_succeeds(agent: AgentProcess, cloud: Cloud, ear: Ear) -> None:
    """A delete of a deleted instance, and of one that never was, is a success with its notification."""
    uuid = await cloud.build()
    await cloud.delete(uuid)
    assert await cloud.order("terminate_instance", instance_uuid=str(uuid)) is None
    never = uuid4()
    assert await cloud.order("terminate_instance", instance_uuid=str(never)) is None
    await ear.hear(never, "sev.instance.delete.end")


async def test_build_of_a_deleted_uuid_is_refused(agent: AgentProcess, cloud: Cloud) -> None:
    """A build that comes again after its instance was deleted does not bring it back."""
    request = cloud.request()
    uuid = UUID(request["uuid"])
    await cloud.order("build_and_run_instance", instance=request)
    await cloud.reached(uuid, "active")
    await cloud.delete(uuid)
    with pytest.raises(RemoteError) as caught:
        await cloud.order("build_and_run_instance", instance=request)
    assert caught.value.code == "instance.exists"
    assert await cloud.left(uuid) == []


@pytest.mark.parametrize("running", [False, True], ids=["defined", "running"])
@pytest.mark.parametrize("named_alike", [False, True], ids=["own name", "our name"])
async def test_strangers_domain_is_untouched(
    agent: AgentProcess, cloud: Cloud, ear: Ear, tmp_path: Path, *, running: bool, named_alike: bool
) -> None:
    """A build with the UUID of somebody else's domain is refused; neither build, undo nor delete touches it."""
    uuid = uuid4()
    name = domain_name(uuid) if named_alike else "stranger"
    path = await write_stranger(tmp_path, uuid=str(uuid), name=name)
    defined = await cloud.virsh("define", str(path))
    assert defined.status == 0, defined.errors
    try:
        if running:
            assert (await cloud.virsh("start", name)).status == 0
        before = (await cloud.virsh("dumpxml", name)).output
        processes = cloud.processes_of(name)
        assert len(processes) == running

        await cloud.order("build_and_run_instance", instance=cloud.request(uuid=str(uuid)))
        view = await cloud.reached(uuid, "error")
        assert view["fault"]["code"] == "instance.foreign_domain"
        assert view["fault"]["field"] == "instance.uuid"
        assert view["fault"]["remedy"]
        assert (await ear.hear(uuid, "create.error")).payload["fault"] == view["fault"]
        await cloud.delete(uuid)

        assert (await cloud.virsh("dumpxml", name)).output == before
        assert cloud.processes_of(name) == processes
        assert not cloud.files(uuid).disk.exists()
        held = await cloud.placement.allocation(uuid)
        assert (held.consumer_type if held else None) == ("UNMANAGED" if running else None)
    finally:
        await cloud.virsh("destroy", name)
        undefined = await cloud.virsh("undefine", name, "--keep-nvram")
    assert undefined.status == 0, undefined.errors
