"""Guests stopped, started and rebooted: by request, by themselves, by others, after the host was down."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import pytest

from sev_agent.domain.identity import domain_name
from sev_agent.lab.platform.guest_image import GUEST_MARK
from sev_agent.messaging.client import RemoteError
from tests.e2e.agent_process import AgentProcess
from tests.e2e.cloud import Cloud
from tests.e2e.ear import Ear
from tests.e2e.waiting import eventually

pytestmark = pytest.mark.asyncio(loop_scope="session")

BOOT_SECONDS = 120.0
_WORK_SECONDS = 60.0
_SOON = 1.5
_PASSING = {"starting", "stopping", "rebooting", "rebooting_hard", "restarting"}


async def test_life_of_a_booted_guest(agent: AgentProcess, cloud: Cloud, ear: Ear) -> None:
    """A guest shuts itself down when asked, boots again, and reboots both ways; the count follows, without a flap."""
    before = await cloud.slots_used()
    uuid = await cloud.build(image__id=str(cloud.lab.image_id), flavor__memory_mb=256)
    await _booted(cloud, uuid, times=1)

    await _order(cloud, "stop_instance", uuid)
    await _settled(cloud, uuid, "stopped")
    assert await cloud.slots_used() == before
    assert not await cloud.runs(uuid)
    assert cloud.firmware_slots_used() == before
    assert "going down" in await _console(cloud, uuid)
    assert "instance.shutdown.late" not in agent.said()
    assert (await ear.hear(uuid, "stop.end")).payload["state"] == "stopped"

    await _order(cloud, "start_instance", uuid)
    await _settled(cloud, uuid, "active")
    assert await cloud.slots_used() == before + 1
    assert await cloud.runs(uuid)
    await _booted(cloud, uuid, times=2)

    for boots, kind in ((3, "SOFT"), (4, "HARD")):
        process = cloud.processes(uuid)
        async with _count_stays(cloud, before + 1), _record_stays(cloud, uuid):
            await _order(cloud, "reboot_instance", uuid, reboot_type=kind)
            await _settled(cloud, uuid, "active")
        assert len(cloud.processes(uuid)) == 1
        assert cloud.processes(uuid) != process
        await _booted(cloud, uuid, times=boots)
    assert "instance.shutdown.late" not in agent.said()
    assert [each.event_type for each in ear.about(uuid, "reboot.end")] == ["sev.instance.reboot.end"] * 2


async def test_guest_reboots_and_switches_itself_off(agent: AgentProcess, cloud: Cloud, ear: Ear) -> None:
    """A reboot inside the guest leaves count and record alone; a guest that switched itself off gives its slot back."""
    before = await cloud.slots_used()
    uuid = await cloud.build(image__id=str(cloud.lab.image_id), flavor__memory_mb=256)
    await _booted(cloud, uuid, times=1)

    async with _count_stays(cloud, before + 1), _record_stays(cloud, uuid):
        assert (await cloud.virsh("reboot", domain_name(uuid), "--mode", "acpi")).status == 0
        await _booted(cloud, uuid, times=2)

    assert (await cloud.virsh("shutdown", domain_name(uuid), "--mode", "acpi")).status == 0
    await ear.hear(uuid, "stop.end", within=BOOT_SECONDS)
    await eventually(lambda: _is(cloud, before), within=_SOON, what="the slot is released")
    view = await cloud.view(uuid)
    assert view is not None
    assert view["state"] == "stopped"


async def test_no_slot(agent: AgentProcess, cloud: Cloud, ear: Ear) -> None:
    """A start that finds every slot taken starts nothing and says what to do; it succeeds once there is a slot."""
    uuid = await cloud.build()
    await _stopped(agent, cloud, uuid)
    others = [await cloud.build() for _ in range(cloud.slots - await cloud.slots_used())]

    await _order(cloud, "start_instance", uuid)
    view = await _settled(cloud, uuid, "stopped")

    assert view["fault"]["code"] == "placement.full"
    assert "every encryption slot of this host is taken" in view["fault"]["message"]
    assert view["fault"]["remedy"]
    assert (await ear.hear(uuid, "start.error")).payload["fault"] == view["fault"]
    assert not await cloud.runs(uuid)
    assert await cloud.slots_used() == cloud.slots
    held = await cloud.placement.allocation(uuid)
    assert held is not None
    assert {name for amounts in held.resources.values() for name in amounts} == {"DISK_GB"}
    await cloud.delete(others[0])
    await _order(cloud, "start_instance", uuid)
    await _settled(cloud, uuid, "active")
    assert await cloud.slots_used() == cloud.slots


async def test_guest_that_does_not_shut_down(agent: AgentProcess, cloud: Cloud) -> None:
    """A guest without a system ignores its power button: it is ended after the time limit, and builds do not wait."""
    await agent.stop()
    await agent.start(builds__guest_shutdown_timeout=3, builds__max_concurrent=1)
    uuid = await cloud.build()
    began = time.monotonic()

    await _order(cloud, "stop_instance", uuid)
    other = await cloud.build()
    assert (await _view(cloud, uuid))["state"] == "stopping"
    await _settled(cloud, uuid, "stopped")

    assert time.monotonic() - began > 3
    assert "instance.shutdown.late" in agent.said()
    assert await cloud.runs(other)
    assert not await cloud.runs(uuid)


async def test_delete_of_a_guest_that_hangs(agent: AgentProcess, cloud: Cloud) -> None:
    """A deletion does not wait for the guest to shut down, and leaves nothing."""
    before = await cloud.slots_used()
    uuid = await cloud.build()
    await _order(cloud, "stop_instance", uuid)
    assert (await _view(cloud, uuid))["state"] == "stopping"

    began = time.monotonic()
    await cloud.delete(uuid)

    assert time.monotonic() - began < 20
    assert await cloud.left(uuid) == []
    assert await cloud.slots_used() == before


@pytest.mark.parametrize(
    ("method", "state", "recorded"),
    [("stop_instance", "stopped", "stopping"), ("reboot_instance", "active", "rebooting")],
)
async def test_killed_while_a_guest_shuts_down(
    agent: AgentProcess, cloud: Cloud, method: str, state: str, recorded: str
) -> None:
    """What a daemon that was killed had begun, the next one ends, with the right count."""
    before = await cloud.slots_used()
    uuid = await cloud.build()
    await _order(cloud, method, uuid)
    await agent.kill()
    assert json.loads(cloud.files(uuid).record.read_text())["state"] == recorded

    await agent.start(builds__guest_shutdown_timeout=1)
    await _settled(cloud, uuid, state)

    runs = state == "active"
    assert await cloud.runs(uuid) is runs
    assert await cloud.slots_used() == before + runs
    assert len(cloud.processes(uuid)) == runs


async def test_domain_that_somebody_undefined(agent: AgentProcess, cloud: Cloud) -> None:
    """A guest whose domain and NVRAM were taken away behind the daemon's back starts from its own disk all the same."""
    uuid = await cloud.build()
    disk = cloud.files(uuid).disk.stat().st_ino
    await _stopped(agent, cloud, uuid)
    assert (await cloud.virsh("undefine", domain_name(uuid), "--nvram")).status == 0
    assert uuid not in await cloud.domains()

    await _order(cloud, "start_instance", uuid)
    await _settled(cloud, uuid, "active")

    assert await cloud.runs(uuid)
    assert cloud.files(uuid).disk.stat().st_ino == disk


async def test_refusals(agent: AgentProcess, cloud: Cloud, ear: Ear) -> None:
    """What the state does not allow is refused with the state and a remedy; for a cast that is a notification."""
    uuid = await cloud.build()
    await _stopped(agent, cloud, uuid)

    with pytest.raises(RemoteError, match="is stopped: it cannot reboot now") as caught:
        await _order(cloud, "reboot_instance", uuid)
    assert caught.value.code == "instance.wrong_state"
    with pytest.raises(RemoteError, match="reboot_type"):
        await _order(cloud, "reboot_instance", uuid, reboot_type="GENTLE")

    await cloud.cast("reboot_instance", instance_uuid=str(uuid))
    refused = await ear.hear(uuid, "reboot.error")
    fault: Any = refused.payload["fault"]
    assert (refused.payload["state"], fault["code"]) == ("refused", "instance.wrong_state")
    assert "start it" in fault["remedy"]
    assert (await _view(cloud, uuid))["state"] == "stopped"


async def test_host_restart(agent: AgentProcess, cloud: Cloud) -> None:
    """After a restart of the host those guests run again that are marked so, and no others."""
    marked = await cloud.build(auto_start=True)
    other = await cloud.build()
    before = await cloud.slots_used()
    await agent.stop()
    for uuid in (marked, other):
        assert (await cloud.virsh("destroy", domain_name(uuid))).status == 0
    boot_id = cloud.host.platform_root / "proc/sys/kernel/random/boot_id"
    boot_id.parent.mkdir(parents=True, exist_ok=True)
    boot_id.write_text("another boot\n")
    try:
        await agent.start()
        await _settled(cloud, marked, "active", passing=_PASSING | {"stopped"})

        assert await cloud.runs(marked)
        assert (await _view(cloud, other))["state"] == "stopped"
        assert not await cloud.runs(other)
        await eventually(lambda: _is(cloud, before - 1), within=_SOON, what="one slot is used again")
    finally:
        boot_id.unlink()


async def _order(cloud: Cloud, method: str, uuid: UUID, **arguments: str) -> None:
    await cloud.order(method, instance_uuid=str(uuid), **arguments)


async def _view(cloud: Cloud, uuid: UUID) -> dict[str, Any]:
    view = await cloud.view(uuid)
    assert view is not None
    return view


async def _settled(cloud: Cloud, uuid: UUID, state: str, *, passing: set[str] | None = None) -> dict[str, Any]:
    """The view of the instance once it is in ``state``; another state that stays is a failure."""

    async def there() -> dict[str, Any] | None:
        view = await _view(cloud, uuid)
        assert view["state"] in {state, *(passing or _PASSING)}, view
        return view if view["state"] == state else None

    found = await eventually(there, within=_WORK_SECONDS, what=f"instance {uuid} is {state}")
    assert found is not None
    return found


async def _stopped(agent: AgentProcess, cloud: Cloud, uuid: UUID) -> None:
    """End a guest that has no system which would heed its button."""
    del agent
    before = await cloud.slots_used()
    assert (await cloud.virsh("destroy", domain_name(uuid))).status == 0
    await eventually(lambda: _is(cloud, before - 1), within=_SOON, what="the slot is released")
    await eventually(lambda: _stands(cloud, uuid, "stopped"), within=_SOON, what="the record says so")


async def _stands(cloud: Cloud, uuid: UUID, state: str) -> bool:
    return bool((await _view(cloud, uuid))["state"] == state)


async def _is(cloud: Cloud, expected: int) -> bool:
    return await cloud.slots_used() == expected


async def _console(cloud: Cloud, uuid: UUID) -> str:
    text: str = await cloud.ask("get_console_output", instance_uuid=str(uuid))
    return text


async def _booted(cloud: Cloud, uuid: UUID, *, times: int) -> None:
    """Wait until the guest's own system has come up so many times since it was built; its console is appended to."""

    async def ready() -> bool:
        return (await _console(cloud, uuid)).count(f"{GUEST_MARK} ready") == times

    await eventually(ready, within=BOOT_SECONDS, what=f"the guest is ready ({times})", every=0.5)


@asynccontextmanager
async def _count_stays(cloud: Cloud, expected: int) -> AsyncIterator[None]:
    """Placement is asked again and again meanwhile, and a second longer: it never says anything else."""
    seen: list[int] = []

    async def watch() -> None:
        while True:
            seen.append(await cloud.slots_used())
            await asyncio.sleep(0.02)

    watching = asyncio.create_task(watch())
    try:
        yield
        await asyncio.sleep(1)
    finally:
        watching.cancel()
        await asyncio.wait({watching})
    assert len(seen) > 10
    assert set(seen) == {expected}


@asynccontextmanager
async def _record_stays(cloud: Cloud, uuid: UUID) -> AsyncIterator[None]:
    """The instance never seems to be stopped meanwhile."""
    seen: set[str] = set()

    async def watch() -> None:
        while True:
            seen.add((await _view(cloud, uuid))["state"])
            await asyncio.sleep(0.05)

    watching = asyncio.create_task(watch())
    try:
        yield
    finally:
        watching.cancel()
        await asyncio.wait({watching})
    assert "active" in seen
    assert "stopped" not in seen
