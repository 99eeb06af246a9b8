"""The host in Placement, and the count that follows what runs."""

import time
from pathlib import Path
from uuid import uuid4

import pytest

from sev_agent.domain.identity import domain_name
from tests.e2e.agent_process import AgentProcess
from tests.e2e.cloud import Cloud, run
from tests.e2e.waiting import eventually

pytestmark = pytest.mark.asyncio(loop_scope="session")

SOON = 1.5
"""Seconds from what libvirt does to what Placement says: "within about a second"."""

STRANGER = """
<domain type='qemu'>
  <name>{name}</name><uuid>{uuid}</uuid>
  <memory unit='MiB'>64</memory><vcpu>1</vcpu>
  <memoryBacking><locked/></memoryBacking>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <loader readonly='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE_4M.fd</loader><nvram>{nvram}</nvram>
  </os>
  <features><acpi/></features>
  <devices><emulator>/usr/bin/qemu-system-x86_64</emulator><memballoon model='none'/></devices>
  <launchSecurity type='sev'><policy>0x0033</policy></launchSecurity>
</domain>
"""


async def write_stranger(directory: Path, *, uuid: str, name: str) -> Path:
    """A domain as somebody without this daemon would write it."""
    copied = await run("cp", "/usr/share/OVMF/OVMF_VARS_4M.fd", directory / "vars.fd")
    assert copied.status == 0
    path = directory / "domain.xml"
    path.write_text(STRANGER.format(name=name, uuid=uuid, nvram=directory / "vars.fd"))
    return path


async def test_providers_are_as_nova_makes_them(agent: AgentProcess, cloud: Cloud) -> None:
    """Root <host> carries the node type, child <host>_amd_sev the slots and the generation's trait."""
    root, child = await cloud.root(), await cloud.child()
    _, root_inventory = await cloud.placement.inventories(root.uuid)
    _, child_inventory = await cloud.placement.inventories(child.uuid)
    assert (root.name, child.name) == (cloud.host.name, f"{cloud.host.name}_amd_sev")
    assert (root.parent, child.parent) == (None, root.uuid)
    assert {provider.uuid for provider in await cloud.placement.tree(root.uuid)} == {root.uuid, child.uuid}
    assert "CUSTOM_NODE_TYPE_SEV" in (await cloud.placement.traits(root.uuid))[1]
    assert (await cloud.placement.traits(child.uuid))[1] == {"HW_CPU_X86_AMD_SEV"}
    assert set(root_inventory) == {"VCPU", "MEMORY_MB", "DISK_GB"}
    assert root_inventory["MEMORY_MB"].allocation_ratio == 1.0
    assert root_inventory["MEMORY_MB"].reserved == 512
    slots = child_inventory["MEM_ENCRYPTION_CONTEXT"]
    assert set(child_inventory) == {"MEM_ENCRYPTION_CONTEXT"}
    assert (slots.total, slots.reserved, slots.max_unit, slots.allocation_ratio) == (cloud.slots, 0, 1, 1.0)


async def test_usage_follows_create_and_delete(agent: AgentProcess, cloud: Cloud) -> None:
    """The used number goes up by one with a guest created and down by one with it deleted."""
    before = await cloud.slots_used()
    uuid = await cloud.build()
    assert await cloud.slots_used() == before + 1
    await cloud.delete(uuid)
    assert await cloud.slots_used() == before


async def test_nothing_is_left_of_a_deleted_guest(agent: AgentProcess, cloud: Cloud) -> None:
    """After a delete there is no domain, process, disk, NVRAM, config drive, console, allocation, or firmware slot."""
    held = cloud.firmware_slots_used()
    uuid = await cloud.build()
    files = cloud.files(uuid)
    assert all(path.exists() for path in (files.disk, files.nvram, files.config_drive, files.console_log))
    assert cloud.processes(uuid) != []
    await cloud.delete(uuid)
    assert await cloud.left(uuid) == []
    assert cloud.firmware_slots_used() == held


async def test_destroy_behind_the_daemons_back_releases_the_slot(agent: AgentProcess, cloud: Cloud) -> None:
    """virsh destroy gives the slot back within about a second, and virsh start takes it again."""
    uuid = await cloud.build()
    before = await cloud.slots_used()
    assert (await cloud.virsh("destroy", domain_name(uuid))).status == 0
    ended = time.monotonic()
    await eventually(lambda: _is(cloud, before - 1), within=SOON, what="the slot is released", every=0.01)
    assert time.monotonic() - ended < SOON
    view = await cloud.view(uuid)
    assert view is not None
    assert view["state"] == "stopped"
    assert (await cloud.virsh("start", domain_name(uuid))).status == 0
    await eventually(lambda: _is(cloud, before), within=SOON, what="the slot is taken again", every=0.01)


async def test_unmanaged_encrypted_domain_is_counted(agent: AgentProcess, cloud: Cloud, tmp_path: Path) -> None:
    """An encrypted guest defined and started by virsh alone holds a slot as UNMANAGED, until it ends."""
    uuid, name = uuid4(), "stranger"
    before = await cloud.slots_used()
    path = await write_stranger(tmp_path, uuid=str(uuid), name=name)
    defined = await cloud.virsh("define", str(path))
    assert defined.status == 0, defined.errors
    try:
        started = await cloud.virsh("start", name)
        assert started.status == 0, started.errors
        await eventually(lambda: _is(cloud, before + 1), within=SOON, what="the stranger is counted", every=0.01)
        held = await cloud.placement.allocation(uuid)
        assert held is not None
        assert held.consumer_type == "UNMANAGED"
        assert held.resources[(await cloud.child()).uuid] == {"MEM_ENCRYPTION_CONTEXT": 1}
        assert (await cloud.virsh("destroy", name)).status == 0
        await eventually(lambda: _is(cloud, before), within=SOON, what="its slot is given back", every=0.01)
        assert await cloud.placement.allocation(uuid) is None
    finally:
        await cloud.virsh("destroy", name)
        undefined = await cloud.virsh("undefine", name, "--keep-nvram")
    assert undefined.status == 0, undefined.errors


async def _is(cloud: Cloud, expected: int) -> bool:
    return await cloud.slots_used() == expected
