"""The lab's compute hosts with real libvirtd and QEMU: what is simulated is asked through libvirt alone."""

import asyncio
import contextlib
import os
import re
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from sev_agent.lab import processes
from sev_agent.lab.platform.emulator.failures import FAILURES
from sev_agent.lab.platform.emulator.kind import Kind
from sev_agent.lab.platform.guest_image import build_guest_image
from sev_agent.lab.service import GUESTS
from tests.integration.platform_host import MEMORY, PATIENCE, SEV_ES, SEV_SNP, Lab, launch_security, running_lab, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

SLOTS = 2


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return await build_guest_image(tmp_path_factory.mktemp("cache"), lambda _: None)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def lab(image: Path) -> AsyncIterator[Lab]:
    async with running_lab(image, name="node1", slots=SLOTS) as lab:
        yield lab


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def _no_guests_left(lab: Lab) -> AsyncIterator[None]:
    """Each test begins on an empty host."""
    yield
    for name in (await lab.virsh("list", "--name")).output.split():
        await lab.virsh("destroy", name)
    await until(lambda: lab.used == 0, PATIENCE)


async def test_libvirt_reports_sev(lab: Lab) -> None:
    """Libvirt's own capabilities say that SEV guests can run, under the host's own name."""
    capabilities = (await lab.virsh("domcapabilities", "--virttype", "qemu", "--machine", "q35")).output
    assert "<sev supported='yes'>" in capabilities
    assert "<cbitpos>51</cbitpos>" in capabilities
    assert (await lab.virsh("hostname")).output.strip() == "node1"


async def test_kvm_is_not_offered(lab: Lab) -> None:
    """Guests run by emulation, whatever ``/dev/kvm`` of this machine is good for."""
    assert "<domain type='kvm'" not in (await lab.virsh("capabilities")).output


async def test_a_guest_boots_and_stops(lab: Lab) -> None:
    """A guest with launch security tells its UUID and hostname, is ready, and goes down by its power button."""
    guest = lab.define("boots")
    started = await guest.start()
    assert started.status == 0, started.errors
    assert lab.used == 1
    assert await guest.said("uuid") == str(guest.uuid)
    assert await guest.said("hostname") == "boots"
    await guest.said("ready")
    assert await guest.said("address", PATIENCE)
    assert (await lab.virsh("shutdown", "boots")).status == 0
    await guest.said("power button", PATIENCE)
    await until(lambda: lab.used == 0, PATIENCE)


async def test_the_firmware_tells_of_the_launch(lab: Lab) -> None:
    """Libvirt's launch security information is the simulated firmware's, policy included."""
    guest = lab.define("measured", security=launch_security(0x3B))
    assert (await guest.start()).status == 0
    rows = (await lab.virsh("domlaunchsecinfo", "measured")).output.splitlines()
    told = {key.strip(): value.strip() for key, _, value in (row.partition(":") for row in rows)}
    assert told["sev-policy"] == str(0x3B)
    assert (told["sev-api-major"], told["sev-api-minor"], told["sev-build-id"]) == ("1", "55", "21")
    assert len(told["sev-measurement"]) == 64


async def test_one_guest_too_many_fails_as_on_real_hosts(lab: Lab) -> None:
    """Beyond the slots a start fails with KVM's words, which libvirt reports; a killed guest makes room again."""
    guests = [lab.define(f"many{number}", memory=64) for number in range(SLOTS + 1)]
    *started, refused = [await guest.start() for guest in guests]
    assert [result.status for result in started] == [0] * SLOTS
    assert refused.status != 0
    assert "sev_common_kvm_init: failed to initialize ret=-16 fw_error=0 ''" in refused.errors
    assert lab.used == SLOTS
    os.kill(guests[0].pid, signal.SIGKILL)
    await until(lambda: lab.used == SLOTS - 1, PATIENCE)
    assert (await guests[-1].start()).status == 0


async def test_a_guest_without_launch_security_takes_no_slot(lab: Lab) -> None:
    """An ordinary guest runs on the same host, and the firmware knows nothing of it."""
    guest = lab.define("plain", security="", memory=64)
    assert (await guest.start()).status == 0
    assert lab.used == 0
    answer = await lab.virsh("qemu-monitor-command", "plain", '{"execute": "query-sev"}')
    assert '"enabled":false' in answer.output


async def test_a_policy_is_refused_by_the_firmware(lab: Lab) -> None:
    """A policy that asks for a newer firmware fails at LAUNCH_START and holds no slot."""
    refused = await lab.define("newer", security=launch_security(0x0002_0033), memory=64).start()
    assert "LAUNCH_START ret=1 fw_error=7 'Policy is not allowed'" in refused.errors
    assert lab.used == 0


async def test_guests_outlive_libvirtd(lab: Lab) -> None:
    """After SIGKILL and restart of libvirtd the same QEMU runs on, known to libvirt, with the same measurement."""
    guest = lab.define("survivor", memory=64)
    assert (await guest.start()).status == 0
    pid = guest.pid
    before = (await lab.virsh("domlaunchsecinfo", "survivor")).output
    os.kill(int((lab.host.directory / "run/libvirtd.pid").read_text()), signal.SIGKILL)
    await lab.start()
    assert await guest.state() == "running"
    assert guest.pid == pid
    assert (await lab.virsh("domlaunchsecinfo", "survivor")).output == before


async def test_guests_carry_the_mark(lab: Lab) -> None:
    """QEMU and the stand at its monitor are known as the lab's."""
    guest = lab.define("marked", memory=64)
    assert (await guest.start()).status == 0
    found = await asyncio.to_thread(processes.find, lab.directory, GUESTS)
    assert guest.pid in {process.pid for process in found}
    assert len(found) == 2


async def test_the_stand_ends_with_the_guest(lab: Lab) -> None:
    """After a guest's end no process and no socket of it is left."""
    guest = lab.define("ends", memory=64)
    assert (await guest.start()).status == 0
    assert (await lab.virsh("destroy", "ends")).status == 0
    await until(lambda: not processes.find(lab.directory, GUESTS), PATIENCE)
    assert list((lab.host.directory / "monitors").iterdir()) == []


async def test_hosts_are_apart_and_leave_nothing(lab: Lab, image: Path) -> None:
    """A second host has its own name, guests and slots; stopped with a guest on it, it leaves no process or mount."""
    async with running_lab(image, name="node2", slots=1) as other:
        assert (await other.virsh("hostname")).output.strip() == "node2"
        assert (await other.define("same", memory=64).start()).status == 0
        assert (await lab.define("same", memory=64).start()).status == 0
        assert (other.used, lab.used) == (1, 1)
        directory = other.directory
    assert processes.find(directory) == []
    assert not any(str(directory) in mounts for mounts in _mounts_of_all())


def _mounts_of_all() -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/mountinfo"):
        with contextlib.suppress(OSError):
            found.append(path.read_text())
    return found


async def test_a_host_without_sev_refuses(image: Path) -> None:
    """On a host without SEV libvirt reports none, and refuses launch security itself."""
    async with running_lab(image, name="plain1", slots=1, kind=Kind.NONE) as plain:
        capabilities = (await plain.virsh("domcapabilities", "--virttype", "qemu", "--machine", "q35")).output
        assert "<sev supported='no'/>" in capabilities
        refused = await plain.define("asks", memory=64).start()
        assert refused.status != 0
        assert "'sev' launch security is not supported" in refused.errors


async def test_an_es_host_runs_both_from_pools_of_their_own(image: Path) -> None:
    """SEV and SEV-ES guests have a slot each where there is one for each; libvirt is told of neither's neighbour."""
    async with running_lab(image, name="es1", slots=1, kind=Kind.SEV_ES) as es:
        first, second = es.define("first", memory=64), es.define("second", security=SEV_ES, memory=64)
        assert (await first.start()).status == 0
        assert (await second.start()).status == 0
        assert (es.used_of("sev"), es.used_of("sev_es")) == (1, 1)
        policy = (await es.virsh("domlaunchsecinfo", "second")).output
        assert re.search(rf"sev-policy\s*: {0x37}\n", policy)
        refused = await es.define("third", security=SEV_ES, memory=64).start()
        assert "sev_common_kvm_init: failed to initialize ret=-16 fw_error=0 ''" in refused.errors
        refused = await es.define("fourth", security=SEV_SNP, memory=64, firmware=MEMORY).start()
        assert "vm-type SEV-SNP not supported by KVM" in refused.errors


async def test_an_snp_host_boots_snp_guests(image: Path) -> None:
    """An SNP guest from firmware in memory boots, is told by its own fields, and excludes SEV-ES on its host."""
    async with running_lab(image, name="snp1", slots=1, kind=Kind.SEV_SNP) as snp:
        capabilities = (await snp.virsh("domcapabilities", "--virttype", "qemu", "--machine", "q35")).output
        assert "<value>sev-snp</value>" in capabilities
        guest = snp.define("snp", security=SEV_SNP, firmware=MEMORY)
        started = await guest.start()
        assert started.status == 0, started.errors
        assert (snp.used_of("sev"), snp.used_of("sev_es")) == (0, 1)
        # libvirt's own question asks for a measurement first, which QEMU has for no SEV-SNP guest.
        told = (await snp.virsh("qemu-monitor-command", "snp", '{"execute": "query-sev"}')).output
        assert f'"state":"running","sev-type":"sev-snp","snp-policy":{0x30000}' in told
        assert await guest.said("uuid") == str(guest.uuid)
        assert (await snp.virsh("destroy", "snp")).status == 0
        refused = await snp.define("es", security=SEV_ES, memory=64).start()
        assert "LAUNCH_START ret=1 fw_error=7 'Policy is not allowed'" in refused.errors
        refused = await snp.define("flash", security=SEV_SNP, memory=64).start()
        assert "pflash with kvm requires KVM readonly memory support" in refused.errors
        await until(lambda: snp.used_of("sev_es") == 0, PATIENCE)


@pytest.mark.parametrize("name", FAILURES)
async def test_an_armed_failure_is_reported_and_leaves_nothing(lab: Lab, name: str) -> None:
    """Libvirt tells the failure in QEMU's words, once; no slot, process or socket is left."""
    guest = lab.define(f"fails-{name}", memory=64)
    lab.host.failures.arm(name, 1)
    refused = await guest.start()
    assert refused.status != 0
    for line in FAILURES[name].error(snp=False).args:
        assert line in refused.errors
    await until(lambda: lab.used == 0 and not processes.find(lab.directory, GUESTS), PATIENCE)
    assert list((lab.host.directory / "monitors").iterdir()) == []
    assert lab.host.failures.names() == []


async def test_a_machine_that_was_switched_off_starts_again(image: Path) -> None:
    """After the sudden end of everything the same directory gives a working host without guests."""
    async with running_lab(image, name="node3", slots=1) as again:
        assert (await again.define("lost", memory=64).start()).status == 0
        # Killed and waited for: a dying process has lost its mark before it has closed its files, and frees its slot.
        await processes.end_all(processes.find(again.directory), again.directory, patience=0)
        assert processes.find(again.directory) == []
        await again.start()
        # libvirtd looks for its former guests in the background, and forgets this record when there is none.
        record = again.host.directory / "run/qemu/lost.xml"
        await until(lambda: not record.exists(), PATIENCE)
        assert (await again.virsh("list", "--name")).output.split() == []
        assert again.used == 0
        assert (await again.define("found", memory=64).start()).status == 0
