"""Guests of the newer generations through the whole path, each in its own pool of slots."""

import asyncio
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import pytest_asyncio

from sev_agent.config import PlacementSection
from sev_agent.domain import launch_security, metadata
from sev_agent.domain.xml import parse_domain
from sev_agent.lab.platform.guest_image import GUEST_MARK, build_guest_image
from sev_agent.sev.footprint import guest_footprint_mb
from sev_agent.sev.generation import Generation
from tests.e2e.agent_process import AgentProcess
from tests.e2e.cloud import Cloud, run
from tests.e2e.ear import Ear, listening
from tests.e2e.shell import Shell
from tests.e2e.waiting import eventually
from tests.images import make_qcow2

pytestmark = pytest.mark.asyncio(loop_scope="session")

_BOOT_SECONDS = 240.0
_CHANGE_SECONDS = 60.0
_ES = {"hw:mem_encryption": "true", "hw:mem_encryption_model": "amd-sev-es"}
_SNP = {"hw:mem_encryption": "true", "hw:mem_encryption_model": "amd-sev-snp"}


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def stateless_image(snp_host: Cloud) -> UUID:
    """The lab's guest image, for firmware that keeps no variables."""
    path = await build_guest_image(snp_host.lab.cache, lambda _: None)
    return await snp_host.upload(path, hw_firmware_stateless="true")


async def _check_boots(cloud: Cloud, generation: Generation, specs: Mapping[str, str], image: UUID, xml: Path) -> None:
    """Build a guest, see it boot, and find it right in libvirt, in Placement, in the firmware and in its record."""
    uuid = await cloud.build(image__id=str(image), flavor__memory_mb=256, flavor__extra_specs=dict(specs))

    async def booted() -> bool:
        said: str = await cloud.ask("get_console_output", instance_uuid=str(uuid))
        return f"{GUEST_MARK} uuid {uuid}" in said

    await eventually(booted, within=_BOOT_SECONDS, what=f"a guest of {generation} says its UUID")
    dumped = await cloud.virsh("dumpxml", "--inactive", f"instance-{uuid}")
    await asyncio.to_thread(xml.write_text, dumped.output)
    validated = await run("virt-xml-validate", xml, "domain")
    assert validated.status == 0, validated.errors
    domain = parse_domain(dumped.output)
    assert launch_security.read(domain) is generation
    known = metadata.read(domain)
    assert known is not None
    assert known.generation is generation
    loader = domain.findtext("os/loader")
    assert loader is not None
    digest = hashlib.sha256(await asyncio.to_thread(Path(loader).read_bytes)).hexdigest()
    assert known.firmware_sha256 == digest
    view = await cloud.view(uuid)
    assert view is not None
    assert (view["firmware"], view["firmware_sha256"]) == (loader, digest)
    held = await cloud.placement.allocation(uuid)
    assert held is not None
    footprint = guest_footprint_mb(256, PlacementSection().guest_overhead_mb)
    assert {provider: dict(amounts) for provider, amounts in held.resources.items()} == {
        (await cloud.root()).uuid: {"VCPU": 1, "MEMORY_MB": footprint, "DISK_GB": 1},
        (await cloud.child(generation)).uuid: {"MEM_ENCRYPTION_CONTEXT": 1},
    }
    assert await asyncio.to_thread(cloud.firmware_slots_used, "sev_es") == 1
    assert await asyncio.to_thread(cloud.firmware_slots_used, "sev") == 0
    await cloud.delete(uuid)
    assert await cloud.left(uuid) == []
    assert await cloud.slots_used(generation) == 0


async def test_es_boots(es_cloud: Cloud, tmp_path: Path) -> None:
    """A SEV-ES guest boots, is what was asked for, and takes a slot of SEV-ES alone."""
    image = es_cloud.lab.image_id
    await _check_boots(es_cloud, Generation.SEV_ES, _ES, image, tmp_path / "domain.xml")


async def test_snp_boots(snp_cloud: Cloud, stateless_image: UUID, tmp_path: Path) -> None:
    """A SEV-SNP guest boots from firmware mapped as memory, with a policy of its own."""
    specs = _SNP | {"hw:mem_encryption_policy": "smt,abi=1.50"}
    await _check_boots(snp_cloud, Generation.SEV_SNP, specs, stateless_image, tmp_path / "domain.xml")


async def test_snp_has_no_es(snp_cloud: Cloud) -> None:
    """On a host with SEV-SNP on there is no SEV-ES (CVE-2025-48514): its provider is not there, and a request fails."""
    host = snp_cloud.host.name
    assert await snp_cloud.placement.find_provider(Generation.SEV_ES.provider_name(host)) is None
    fault = await _failed(snp_cloud, flavor__extra_specs=_ES)
    assert fault["code"] == "host.generation_unavailable"
    assert "CVE-2025-48514" in fault["message"]


async def test_a_generation_that_the_host_lacks(agent: AgentProcess, cloud: Cloud) -> None:
    """A host of the first generation says why it runs no SEV-ES; the error lets another host try."""
    fault = await _failed(cloud, flavor__extra_specs=_ES)
    assert fault["code"] == "host.generation_unavailable"
    assert "parameter sev_es off" in fault["message"]
    assert fault["retryable"]


async def test_a_policy_that_the_host_cannot_meet(agent: AgentProcess, cloud: Cloud) -> None:
    """A policy that wants newer firmware than the host's is refused before anything starts, with both versions."""
    specs = {"hw:mem_encryption": "true", "hw:mem_encryption_policy": "noks,api=1.200"}
    fault = await _failed(cloud, flavor__extra_specs=specs)
    assert fault["code"] == "host.policy_unmet"
    assert "wants firmware 1.200 or newer" in fault["message"]
    assert f"is {(await cloud.ask('get_host_status'))['firmware_api']}" in fault["message"]
    assert fault["field"] == "instance.flavor.extra_specs.hw:mem_encryption_policy"
    assert fault["retryable"]


async def test_a_lost_device(agent: AgentProcess, cloud: Cloud, ear: Ear) -> None:
    """A host whose /dev/sev vanishes tells that it runs nothing any more, and offers no slot until it returns."""
    node = cloud.host.platform_root / "dev/sev"
    away = node.with_name("sev.away")
    node.rename(away)
    try:
        told = await _generations(ear, cloud, lambda payload: "amd-sev" in payload["unusable"])
        assert "there is no /dev/sev" in told["unusable"]["amd-sev"]
        fault = await _failed(cloud)
        assert fault["code"] == "host.generation_unavailable"
        assert await cloud.placement.find_provider(Generation.SEV.provider_name(cloud.host.name)) is None
    finally:
        away.rename(node)
    back = await _generations(ear, cloud, lambda payload: "amd-sev" in payload["usable"])
    assert back["usable"]["amd-sev"] == cloud.slots


async def test_servers_find_the_host_of_their_generation(
    agent: AgentProcess, cloud: Cloud, es_cloud: Cloud, snp_cloud: Cloud, tmp_path: Path
) -> None:
    """The scheduler leaves the host of the first generation alone; with the others dead, the error tells why."""
    operator = Shell(cloud.lab)
    blank = await asyncio.to_thread(make_qcow2, tmp_path / "blank.qcow2")
    stateless = await snp_cloud.upload(blank, hw_firmware_stateless="true")
    await asyncio.gather(
        _check_found(operator, es_cloud, Generation.SEV_ES, _ES, cloud.blank),
        _check_found(operator, snp_cloud, Generation.SEV_SNP, _SNP, stateless),
    )


async def _check_found(
    operator: Shell, home: Cloud, generation: Generation, specs: Mapping[str, str], image: UUID
) -> None:
    flavor, name = f"{generation}.small", f"server-{generation}"
    properties = [word for key, value in specs.items() for word in ("--property", f"{key}={value}")]
    await operator.openstack("flavor", "create", "--ram", "64", "--disk", "1", *properties, flavor)
    wanted = ("--flavor", flavor, "--image", str(image), "--wait")
    made = await operator.json("server", "create", *wanted, name)
    assert (made["status"], made["OS-EXT-SRV-ATTR:host"]) == ("ACTIVE", home.host.name)
    await operator.openstack("server", "delete", "--wait", name)
    await home.agent.stop()
    await operator.refused("server", "create", *wanted, f"{name}-nowhere")
    lost = await operator.json("server", "show", f"{name}-nowhere")
    assert lost["status"] == "ERROR"
    assert "no valid host" in lost["fault"]["message"]
    assert generation.value in lost["fault"]["message"]
    await operator.openstack("server", "delete", "--wait", f"{name}-nowhere")
    await operator.openstack("flavor", "delete", flavor)


async def test_pools(es_cloud: Cloud) -> None:
    """SEV and SEV-ES guests on one host take slots of their own pools, each up to its own number."""
    slots = es_cloud.slots
    es_guests = [await es_cloud.build(flavor__extra_specs=_ES) for _ in range(slots)]
    fault = await _failed(es_cloud, flavor__extra_specs=_ES)
    assert fault["code"] == "placement.full"
    sev_guest = await es_cloud.build()
    assert await es_cloud.slots_used(Generation.SEV_ES) == slots
    assert await es_cloud.slots_used(Generation.SEV) == 1
    assert await asyncio.to_thread(es_cloud.firmware_slots_used, "sev_es") == slots
    assert await asyncio.to_thread(es_cloud.firmware_slots_used, "sev") == 1
    for uuid in (*es_guests, sev_guest):
        await es_cloud.delete(uuid)


async def test_a_lost_generation(es_cloud: Cloud) -> None:
    """SEV-ES switched off under a guest: slots are reserved, it is reported, a start is refused; and all comes back."""
    uuid = await es_cloud.build(flavor__extra_specs=_ES)
    stopped = await es_cloud.build(flavor__extra_specs=_ES)
    # There is no system in it that could shut itself down.
    assert (await es_cloud.virsh("destroy", f"instance-{stopped}")).status == 0
    await eventually(lambda: _is_stopped(es_cloud, stopped), within=_CHANGE_SECONDS, what="the guest is stopped")
    parameter = es_cloud.host.platform_root / "sys/module/kvm_amd/parameters/sev_es"
    async with listening(es_cloud.broker) as ear:
        try:
            await asyncio.to_thread(parameter.write_text, "N\n")
            told = await _generations(ear, es_cloud, lambda payload: "amd-sev-es" in payload["unusable"])
            assert told["stranded"] == {"amd-sev-es": sorted([str(uuid), str(stopped)])}
            assert "parameter sev_es off" in told["unusable"]["amd-sev-es"]
            child = await es_cloud.child(Generation.SEV_ES)
            _, inventories = await es_cloud.placement.inventories(child.uuid)
            assert inventories["MEM_ENCRYPTION_CONTEXT"].reserved == es_cloud.slots
            assert Generation.SEV_ES.trait not in (await es_cloud.placement.traits(child.uuid))[1]
            assert await es_cloud.runs(uuid)
            status = await es_cloud.ask("get_host_status")
            assert status["stranded"] == told["stranded"]
            assert list(status["slots"]) == ["amd-sev"]
            await es_cloud.order("start_instance", instance_uuid=str(stopped))
            refused = await ear.hear(stopped, "start.error")
            fault: Any = refused.payload["fault"]
            assert fault["code"] == "host.generation_unavailable"
        finally:
            await asyncio.to_thread(parameter.write_text, "Y\n")
        back = await _generations(ear, es_cloud, lambda payload: "amd-sev-es" in payload["usable"])
        assert back["stranded"] == {}

        async def offered() -> bool:
            _, inventories = await es_cloud.placement.inventories((await es_cloud.child(Generation.SEV_ES)).uuid)
            return inventories["MEM_ENCRYPTION_CONTEXT"].reserved == 0

        await eventually(offered, within=_CHANGE_SECONDS, what="the slots are offered again")
    for each in (uuid, stopped):
        await es_cloud.delete(each)


async def _is_stopped(cloud: Cloud, uuid: UUID) -> bool:
    view = await cloud.view(uuid)
    return view is not None and view["state"] == "stopped"


async def _generations(ear: Ear, cloud: Cloud, wanted: Callable[[Any], bool]) -> dict[str, Any]:
    """The newest ``sev.host.generations`` of the host, once it is as ``wanted``."""
    async with asyncio.timeout(_CHANGE_SECONDS):
        while True:
            told = [each.payload for each in ear.heard if each.event_type == "sev.host.generations"]
            told = [payload for payload in told if payload["host"] == cloud.host.name]
            if told and wanted(told[-1]):
                found: dict[str, Any] = dict(told[-1])
                return found
            await ear.more(within=_CHANGE_SECONDS)


async def _failed(cloud: Cloud, **changes: Any) -> dict[str, Any]:
    """The fault of a build that fails, after which nothing is left of it."""
    request = cloud.request(**changes)
    uuid = UUID(request["uuid"])
    await cloud.order("build_and_run_instance", instance=request)
    fault: dict[str, Any] = (await cloud.reached(uuid, "error"))["fault"]
    assert await cloud.left(uuid) == []
    return fault


@pytest_asyncio.fixture(loop_scope="session")
async def kernel(cloud: Cloud, tmp_path: Path) -> UUID:
    """The kernel of the lab's guest, as an image of its own."""
    await build_guest_image(cloud.lab.cache, lambda _: None)
    package = max((cloud.lab.cache / "packages").glob("linux-image-*.deb"), key=lambda path: path.stat().st_size)
    extracted = await run("dpkg-deb", "--extract", package, tmp_path / "kernel")
    assert extracted.status == 0, extracted.errors
    (path,) = (tmp_path / "kernel/boot").glob("vmlinuz-*")
    return await cloud.upload(path, disk_format="aki", container_format="aki")


async def test_kernel_of_the_image(agent: AgentProcess, cloud: Cloud, kernel: UUID, tmp_path: Path) -> None:
    """An image's kernel boots with the image's command line; firmware that cannot measure it is told so."""
    disk = await asyncio.to_thread(make_qcow2, tmp_path / "disk.qcow2")
    line = "console=ttyS0 sev_agent_told_it_so"
    image = await cloud.upload(disk, kernel_id=str(kernel), os_command_line=line)
    uuid = await cloud.build(image__id=str(image), flavor__memory_mb=256)

    async def booted() -> bool:
        said: str = await cloud.ask("get_console_output", instance_uuid=str(uuid))
        return line in said

    await eventually(booted, within=_BOOT_SECONDS, what="the kernel shows its command line")
    measured = await cloud.upload(
        disk, kernel_id=str(kernel), os_command_line=line, hw_mem_encryption_kernel_hashes="true"
    )
    fault = await _failed(cloud, image__id=str(measured), flavor__memory_mb=256)
    assert fault["code"] == "launch.firmware_unsuitable"
    assert "its place for a kernel's hashes is missing" in fault["message"]
    await cloud.delete(uuid)
    assert await cloud.left(uuid) == []
