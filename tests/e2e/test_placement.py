"""The host in Placement, and the count that follows what runs."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID, uuid4

import pytest
import pytest_asyncio

from sev_agent.domain.identity import domain_name
from sev_agent.hypervisor.events import Lifecycle
from tests.e2e.agent_process import AgentProcess, Samples
from tests.e2e.cloud import Cloud, run
from tests.e2e.delays import FOLLOWED
from tests.e2e.waiting import eventually
from tests.libvirt_host import Host, running_host

pytestmark = pytest.mark.asyncio(loop_scope="session")

SOON = 1.0
"""Seconds from libvirt's event to Placement's usage, for the quickest of several: a busy machine delays any of them."""

PATIENCE = 60.0
_ROUNDS = 3

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


@dataclass(frozen=True, slots=True)
class Follower:
    """What libvirt tells this process, beside what Placement counts. ``seconds`` lie between the two.

    ``compared`` is how many changes a comparison ran beside, so that it may have been what brought them to Placement.
    """

    cloud: Cloud
    agent: AgentProcess
    libvirt: Host
    seconds: list[float]
    compared: list[str]

    async def virsh(self, command: str, uuid: UUID, domain: str, *, event: Lifecycle, used: int) -> None:
        """Do something behind the daemon's back, and wait until ``used`` slots are."""
        before = _comparisons(await self.agent.metrics())
        doing = asyncio.create_task(self.cloud.virsh(command, domain))
        async with asyncio.timeout(PATIENCE):
            told = await self.libvirt.events.get()
            while (told.uuid, told.event) != (uuid, event):
                told = await self.libvirt.events.get()
        await eventually(lambda: _is(self.cloud, used), within=PATIENCE, what=f"{used} slots are used", every=0.01)
        self.seconds.append(time.monotonic() - told.received)
        if _comparisons(await self.agent.metrics()) != before:
            self.compared.append(command)
        done = await doing
        assert done.status == 0, done.errors

    def followed_by_event(self) -> None:
        """Most changes came to Placement while no comparison ran, and the quickest within a second."""
        assert len(self.compared) <= len(self.seconds) // 2, "only comparisons bring changes to Placement"
        assert min(self.seconds) < SOON, self.seconds


def _comparisons(samples: Samples) -> float:
    return samples("sev_agent_reconciliations_total")


@pytest_asyncio.fixture(loop_scope="session")
async def follower(cloud: Cloud, agent: AgentProcess, request: pytest.FixtureRequest) -> AsyncIterator[Follower]:
    async with running_host(uri=cloud.host.uri) as libvirt:
        assert await libvirt.next_change()
        follower = Follower(cloud, agent, libvirt, [], [])
        yield follower
    request.config.stash[FOLLOWED].extend(follower.seconds)


async def test_destroy_behind_the_daemons_back_releases_the_slot(cloud: Cloud, follower: Follower) -> None:
    """virsh destroy gives the slot back and virsh start takes it again: by event, at best within a second.

    How long each took is printed at the end of the run; a busy machine may take longer over any one.
    """
    uuid = await cloud.build()
    used, domain = await cloud.slots_used(), domain_name(uuid)
    for _ in range(_ROUNDS):
        await follower.virsh("destroy", uuid, domain, event=Lifecycle.STOPPED, used=used - 1)
        await cloud.reached(uuid, "stopped")
        await follower.virsh("start", uuid, domain, event=Lifecycle.STARTED, used=used)
    follower.followed_by_event()


async def test_unmanaged_encrypted_domain_is_counted(cloud: Cloud, follower: Follower, tmp_path: Path) -> None:
    """An encrypted guest defined and started by virsh alone holds a slot as UNMANAGED, until it ends."""
    uuid, name = uuid4(), "stranger"
    before = await cloud.slots_used()
    path = await write_stranger(tmp_path, uuid=str(uuid), name=name)
    defined = await cloud.virsh("define", str(path))
    assert defined.status == 0, defined.errors
    try:
        await follower.virsh("start", uuid, name, event=Lifecycle.STARTED, used=before + 1)
        held = await cloud.placement.allocation(uuid)
        assert held is not None
        assert held.consumer_type == "UNMANAGED"
        assert held.resources[(await cloud.child()).uuid] == {"MEM_ENCRYPTION_CONTEXT": 1}
        await follower.virsh("destroy", uuid, name, event=Lifecycle.STOPPED, used=before)
        assert await cloud.placement.allocation(uuid) is None
    finally:
        await cloud.virsh("destroy", name)
        undefined = await cloud.virsh("undefine", name, "--keep-nvram")
    assert undefined.status == 0, undefined.errors


async def _is(cloud: Cloud, expected: int) -> bool:
    return await cloud.slots_used() == expected
