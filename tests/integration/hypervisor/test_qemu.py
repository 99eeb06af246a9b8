import asyncio
import os
import signal
from collections.abc import AsyncIterator
from uuid import UUID, uuid4

import pytest

from sev_agent.config import HypervisorSection
from sev_agent.hypervisor import capabilities
from sev_agent.hypervisor.domains import DomainState
from sev_agent.hypervisor.errors import HypervisorError, StartFailed
from sev_agent.hypervisor.events import Lifecycle
from tests.integration.hypervisor.conftest import PrivateLibvirtd
from tests.libvirt_host import PATIENCE, Host, agent_metadata, running_host


@pytest.fixture
async def host(shared_libvirtd: PrivateLibvirtd) -> AsyncIterator[Host]:
    async with running_host(uri=shared_libvirtd.qemu_uri, virt_type="qemu") as host:
        await host.hypervisor.wait_up(PATIENCE)
        yield host


def _xml(uuid: UUID, devices: str = "") -> str:
    return f"""<domain type='qemu'><name>{uuid}</name><uuid>{uuid}</uuid><memory unit='MiB'>64</memory><vcpu>1</vcpu>
    <os><type arch='x86_64' machine='q35'>hvm</type></os><features><acpi/></features>
    <devices><emulator>/usr/bin/qemu-system-x86_64</emulator>{devices}<memballoon model='none'/></devices></domain>"""


async def test_runs_and_removes_a_real_guest(host: Host) -> None:
    """The QEMU driver takes every flag that is used, and repeats are successes there too."""
    uuid = uuid4()
    domains = host.domains
    assert await domains.define(_xml(uuid)) == uuid
    assert await domains.start(uuid)
    assert not await domains.start(uuid)
    assert await domains.state(uuid) is DomainState.RUNNING
    await domains.shutdown(uuid)  # there is no system in the guest that would hear it
    await domains.destroy(uuid)
    await domains.destroy(uuid)
    assert await domains.state(uuid) is DomainState.SHUTOFF
    await domains.undefine(uuid)
    await domains.undefine(uuid)
    assert await domains.state(uuid) is None
    seen = []
    async with asyncio.timeout(PATIENCE):
        while Lifecycle.UNDEFINED not in seen:
            seen.append((await host.events.get()).event)
    assert seen[:1] == [Lifecycle.DEFINED]
    assert [event for event in seen if event in {Lifecycle.STARTED, Lifecycle.STOPPED}] == [
        Lifecycle.STARTED,
        Lifecycle.STOPPED,
    ]


async def test_guests_that_hang_cost_neither_the_connection_nor_the_view(shared_libvirtd: PrivateLibvirtd) -> None:
    """However many calls wait for hung guests, libvirtd still answers keepalive, and the domains can be listed."""
    keepalive = {"keepalive_interval": 1, "keepalive_count": 1}
    async with running_host(uri=shared_libvirtd.qemu_uri, **keepalive) as host:
        assert await host.next_change()
        uuids = [uuid4() for _ in range(5)]
        for uuid in uuids:
            await host.domains.start(
                await host.domains.define(_xml(uuid).replace("<os>", agent_metadata(uuid) + "<os>"))
            )
        for pid in shared_libvirtd.guest_pids():
            os.kill(pid, signal.SIGSTOP)
        presses = [asyncio.create_task(host.domains.shutdown(uuid)) for uuid in uuids]
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(host.changes.get(), 4)
        async with asyncio.timeout(1):
            guests = await host.domains.guests()
            assert {guest.uuid for guest in guests if guest.is_active and guest.metadata} == set(uuids)
            assert all([await host.domains.is_managed(uuid) for uuid in uuids])
        for pid in shared_libvirtd.guest_pids():
            os.kill(pid, signal.SIGCONT)
        await asyncio.gather(*presses)
        for uuid in uuids:
            await host.domains.destroy(uuid)
            await host.domains.undefine(uuid)


async def test_a_failed_start_leaves_the_domain_defined(host: Host) -> None:
    """QEMU's own words are in the error, and the caller can undefine what is left."""
    uuid = uuid4()
    disk = "<disk type='file'><source file='/nonexistent/disk'/><target dev='vda' bus='virtio'/></disk>"
    with pytest.raises(StartFailed, match="/nonexistent/disk"):
        await host.domains.start(await host.domains.define(_xml(uuid, disk)))
    assert await host.domains.state(uuid) is DomainState.SHUTOFF
    await host.domains.undefine(uuid)


async def test_a_host_that_lacks_the_emulator_says_so_at_once(host: Host) -> None:
    """An emulator that is not there is found when the domain is defined; another host may have it."""
    xml = _xml(uuid4()).replace("/usr/bin/qemu-system-x86_64", "/nonexistent/qemu")
    with pytest.raises(HypervisorError, match="/nonexistent/qemu") as caught:
        await host.domains.define(xml)
    assert caught.value.retryable


async def test_reads_what_qemu_can_do(host: Host) -> None:
    """q35 is told by its full name, and this machine's QEMU without SEV as one without."""
    found = await capabilities.read(host.hypervisor, HypervisorSection(virt_type="qemu"))
    assert found.machine.startswith("pc-q35-")
    assert int(found.emulator_version.split(".")[0]) >= 9
    assert not found.sev


async def test_an_emulator_that_is_missing_is_named(host: Host) -> None:
    """A wrong setting is told with its name."""
    settings = HypervisorSection.model_validate({"virt_type": "qemu", "emulator": "/nonexistent/qemu"})
    with pytest.raises(HypervisorError, match=r"/nonexistent/qemu.*hypervisor\.emulator"):
        await capabilities.read(host.hypervisor, settings)
