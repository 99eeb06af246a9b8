"""One guest from a stock client's cast to its own console: what it is, and what it leaves."""

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
import pytest_asyncio

from sev_agent.config import PlacementSection
from sev_agent.domain.identity import domain_name
from sev_agent.domain.xml import parse_domain
from sev_agent.lab import evidence
from sev_agent.lab.platform.guest_image import GUEST_MARK
from sev_agent.sev.footprint import guest_footprint_mb
from tests.e2e.agent_process import AgentProcess
from tests.e2e.cloud import Cloud, run
from tests.e2e.waiting import eventually

pytestmark = pytest.mark.asyncio(loop_scope="session")

BOOT_SECONDS = 120.0
_ORDERED_STEPS = ("image", "start")
_STEPS = {"image", "claim", "cache", "disk", "config_drive", "firmware", "define", "start"}


@dataclass
class Oslo:
    """oslo.messaging in a process of its own; ``heard`` are the notifications so far."""

    process: asyncio.subprocess.Process
    heard: list[dict[str, Any]] = field(default_factory=list)

    async def ask(self, mode: str, topic: str, method: str, **arguments: Any) -> Any:
        assert self.process.stdin is not None
        asked = {"mode": mode, "topic": topic, "method": method, "arguments": arguments}
        self.process.stdin.write(json.dumps(asked).encode() + b"\n")
        while "event_type" in (event := await self._event()):
            self.heard.append(event)
        return event

    async def hear(self, event_type: str) -> dict[str, Any]:
        while not (found := [event for event in self.heard if event["event_type"] == event_type]):
            event = await self._event()
            assert "event_type" in event, event
            self.heard.append(event)
        return found[0]

    async def _event(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = await asyncio.wait_for(self.process.stdout.readline(), 60)
        assert line, "the oslo.messaging process ended"
        event: dict[str, Any] = json.loads(line)
        return event


@contextlib.asynccontextmanager
async def stock_client(cloud: Cloud) -> AsyncIterator[Oslo]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        Path(__file__).with_name("oslo_client.py"),
        cloud.lab.rabbit_url.replace("amqp://", "rabbit://"),
        cloud.host.name,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    oslo = Oslo(process)
    try:
        assert await oslo._event() == {"ready": True}
        yield oslo
    finally:
        try:
            await asyncio.wait_for(process.communicate(b""), 20)
        except TimeoutError:
            process.kill()
            await process.communicate()


@dataclass(frozen=True)
class Guest:
    """A guest that was requested by a stock client, and what this client saw of it."""

    uuid: UUID
    view: dict[str, Any]
    heard: list[dict[str, Any]]
    slots_before: int


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def guest(cloud: Cloud) -> AsyncIterator[Guest]:
    """Booting under emulation takes long, so one guest serves all tests here."""
    if not cloud.agent.is_running:
        await cloud.agent.start()
    uuid = uuid4()
    cloud.kept.add(uuid)
    before = await cloud.slots_used()
    instance = cloud.request(
        uuid=str(uuid),
        name="Stock Guest 1",
        image__id=str(cloud.lab.image_id),
        flavor__memory_mb=256,
        networks=[{"type": "user"}],
    )
    async with stock_client(cloud) as oslo:
        assert await oslo.ask("cast", "sev_agent", "build_and_run_instance", instance=instance) == {"result": None}
        await oslo.hear("sev.instance.create.end")
        answer = await oslo.ask("call", "sev_agent_query", "get_instance", instance_uuid=str(uuid))
        yield Guest(uuid, answer["result"], oslo.heard, before)
    cloud.kept.discard(uuid)
    await cloud.delete(uuid)
    assert await cloud.left(uuid) == []


async def test_stock_client_asks_for_its_guest(guest: Guest) -> None:
    """A guest that oslo.messaging cast is active in the answer to oslo.messaging's call, with the caller's request."""
    assert (guest.view["uuid"], guest.view["state"], guest.view["generation"], guest.view["request_id"]) == (
        str(guest.uuid),
        "active",
        "amd-sev",
        "req-from-oslo",
    )


async def test_stock_client_hears_start_progress_and_end(guest: Guest, cloud: Cloud) -> None:
    """oslo.messaging hears the start, each step with its time, and the end, in this order, of this request."""
    events = [event["event_type"].removeprefix("sev.instance.create.") for event in guest.heard]
    steps = [event["payload"]["step"] for event in guest.heard if "step" in event["payload"]]
    assert events == ["start", *["progress"] * len(_STEPS), "end"]
    assert set(steps) == _STEPS
    assert (steps[0], steps[-1]) == _ORDERED_STEPS
    assert all(event["payload"]["seconds"] >= 0 for event in guest.heard if "step" in event["payload"])
    assert {event["request_id"] for event in guest.heard} == {"req-from-oslo"}
    assert {event["publisher_id"] for event in guest.heard} == {f"sev_agent.{cloud.host.name}"}
    assert {event["payload"]["instance_uuid"] for event in guest.heard} == {str(guest.uuid)}


async def test_guest_boots_and_knows_itself(guest: Guest, cloud: Cloud, agent: AgentProcess) -> None:
    """The guest prints its own UUID, the hostname made from its name, and that it is ready."""

    async def ready() -> str:
        text: str = await cloud.ask("get_console_output", instance_uuid=str(guest.uuid))
        return text if f"{GUEST_MARK} ready" in text else ""

    console = await eventually(ready, within=BOOT_SECONDS, what="the guest is ready", every=0.5)
    assert f"{GUEST_MARK} uuid {guest.uuid}" in console
    assert f"{GUEST_MARK} hostname stock-guest-1" in console


async def test_domain_is_an_encrypted_one(guest: Guest, cloud: Cloud) -> None:
    """libvirt's own XML has launch security, q35, pflash, locked memory, and neither balloon nor vmcoreinfo."""
    domain = parse_domain((await cloud.virsh("dumpxml", domain_name(guest.uuid))).output)
    security = domain.find("launchSecurity")
    loader = domain.find("os/loader")
    kind = domain.find("os/type")
    balloon = domain.find("devices/memballoon")
    assert security is not None
    assert security.get("type") == "sev"
    assert int(security.findtext("policy") or "0", 0) == 0x33
    assert kind is not None
    assert "q35" in (kind.get("machine") or "")
    assert loader is not None
    assert (loader.get("type"), loader.get("readonly")) == ("pflash", "yes")
    assert domain.findtext("os/nvram") == str(cloud.files(guest.uuid).nvram)
    assert domain.find("memoryBacking/locked") is not None
    assert balloon is not None
    assert balloon.get("model") == "none"
    assert domain.find("features/vmcoreinfo") is None


async def test_every_virtio_device_has_its_iommu_on(guest: Guest, cloud: Cloud) -> None:
    """Controller, NIC, rng and every other virtio device of the running domain have iommu='on'."""
    found = await evidence.domain_evidence(cloud.host, guest.uuid)
    kinds = {name.split()[0] for name in found.devices}
    assert {"controller", "interface", "rng"} <= kinds
    assert [name for name, iommu in found.devices.items() if not iommu] == []


async def test_domain_is_valid_for_libvirts_schema(guest: Guest, cloud: Cloud, tmp_path: Path) -> None:
    """virt-xml-validate accepts what virsh dumpxml shows."""
    path = tmp_path / "domain.xml"
    path.write_text((await cloud.virsh("dumpxml", domain_name(guest.uuid))).output)
    validated = await run("virt-xml-validate", path, "domain")
    assert validated.status == 0, validated.errors


async def test_slot_is_counted(guest: Guest, cloud: Cloud) -> None:
    """Placement's usage has gone up by one, for this guest, and the firmware holds one slot."""
    held = await cloud.placement.allocation(guest.uuid)
    assert held is not None
    root, child = await cloud.root(), await cloud.child()
    assert await cloud.slots_used() == guest.slots_before + 1
    assert held.consumer_type == "INSTANCE"
    assert {provider: dict(amounts) for provider, amounts in held.resources.items()} == {
        root.uuid: {
            "VCPU": 1,
            "MEMORY_MB": guest_footprint_mb(256, PlacementSection().guest_overhead_mb),
            "DISK_GB": 1,
        },
        child.uuid: {"MEM_ENCRYPTION_CONTEXT": 1},
    }
    assert cloud.firmware_slots_used() == 1
