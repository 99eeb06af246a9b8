"""Builds that fail on their way: each tells why and leaves nothing on disk, in libvirt or in Placement."""

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
import pytest_asyncio

from tests.e2e.agent_process import AgentProcess
from tests.e2e.cloud import Cloud, run
from tests.e2e.downloads import IMAGE_MIB, StallingProxy, begin_download, upload_big
from tests.e2e.ear import Ear
from tests.images import MIB, make_qcow2, qemu_img

pytestmark = pytest.mark.asyncio(loop_scope="session")

TMPFS_MIB = IMAGE_MIB + 16


async def failure(cloud: Cloud, agent: AgentProcess, ear: Ear, code: str, **changes: Any) -> dict[str, Any]:
    """Have a build fail with ``code``, told in every way; returns the fault. Nothing of it may be left."""
    before = await agent.metrics()
    request = cloud.request(**changes)
    uuid = UUID(request["uuid"])
    await cloud.order("build_and_run_instance", instance=request)
    view = await cloud.reached(uuid, "error")
    fault: dict[str, Any] = view["fault"]
    assert fault["code"] == code, fault
    assert fault["remedy"], fault
    told = await ear.hear(uuid, "sev.instance.create.error")
    assert told.payload["fault"] == fault
    assert ear.about(uuid, "create.start") != []
    assert ear.about(uuid, "create.end") == []
    await agent.counted(before, "sev_agent_builds_total", outcome="error", code=code)
    assert await cloud.left(uuid) == []
    return fault


async def no_image(cloud: Cloud, directory: Path) -> UUID:
    return uuid4()


async def queued(cloud: Cloud, directory: Path) -> UUID:
    return await cloud.upload(None)


async def truncated(cloud: Cloud, directory: Path) -> UUID:
    path = make_qcow2(directory / "whole.qcow2")
    os.truncate(path, path.stat().st_size // 2)
    return await cloud.upload(path)


async def damaged_in_store(cloud: Cloud, directory: Path) -> UUID:
    """Glance's own copy changes after it was hashed."""
    image = await cloud.upload(make_qcow2(directory / "whole.qcow2"))
    with cloud.stored(image).open("r+b") as file:
        file.seek(cloud.stored(image).stat().st_size // 2)
        file.write(b"damage")
    return image


async def garbage(cloud: Cloud, directory: Path) -> UUID:
    path = directory / "garbage"
    path.write_bytes(b"QFI\xfb" + bytes(range(256)) * 64)
    return await cloud.smuggle(path)


async def empty(cloud: Cloud, directory: Path) -> UUID:
    path = directory / "empty"
    path.touch()
    return await cloud.smuggle(path)


async def raw_as_qcow2(cloud: Cloud, directory: Path) -> UUID:
    path = directory / "disk.raw"
    path.write_bytes(bytes(MIB))
    return await cloud.smuggle(path)


async def qcow2_as_raw(cloud: Cloud, directory: Path) -> UUID:
    return await cloud.upload(make_qcow2(directory / "disk.qcow2"), disk_format="raw")


async def vmdk(cloud: Cloud, directory: Path) -> UUID:
    path = directory / "disk.vmdk"
    qemu_img("create", "-f", "vmdk", path, "1M")
    return await cloud.upload(path, disk_format="vmdk")


async def backing_file(cloud: Cloud, directory: Path) -> UUID:
    path = directory / "overlay.qcow2"
    qemu_img("create", "-u", "-f", "qcow2", "-b", "/etc/passwd", "-F", "raw", path, "1M")
    return await cloud.smuggle(path)


async def data_file(cloud: Cloud, directory: Path) -> UUID:
    path = directory / "split.qcow2"
    qemu_img("create", "-f", "qcow2", "-o", f"data_file={directory}/data.raw,data_file_raw=on", path, "1M")
    return await cloud.smuggle(path)


async def larger_than_declared(cloud: Cloud, directory: Path) -> UUID:
    """Glance does not know the virtual size, so only the content tells."""
    return await cloud.smuggle(make_qcow2(directory / "large.qcow2", size="2G"))


async def larger_than_flavor(cloud: Cloud, directory: Path) -> UUID:
    return await cloud.upload(make_qcow2(directory / "large.qcow2", size="2G"))


async def not_for_encryption(cloud: Cloud, directory: Path) -> UUID:
    return await cloud.upload(make_qcow2(directory / "plain.qcow2"), hw_mem_encryption="False")


BAD_IMAGES: dict[str, tuple[Callable[[Cloud, Path], Awaitable[UUID]], str, str]] = {
    "missing": (no_image, "image.not_found", "instance.image.id"),
    "queued": (queued, "image.inactive", "image.status"),
    "cut off": (truncated, "image.corrupt", "instance.image.id"),
    "garbage": (garbage, "image.corrupt", "instance.image.id"),
    "empty": (empty, "image.corrupt", "instance.image.id"),
    "damaged in Glance": (damaged_in_store, "image.hash_mismatch", "instance.image.id"),
    "raw declared as qcow2": (raw_as_qcow2, "image.format_mismatch", "instance.image.id"),
    "qcow2 declared as raw": (qcow2_as_raw, "image.format_mismatch", "instance.image.id"),
    "format that is not taken": (vmdk, "image.format_unsupported", "image.disk_format"),
    "backing file": (backing_file, "image.backing_file", "instance.image.id"),
    "external data file": (data_file, "image.data_file", "instance.image.id"),
    "larger than the flavor's disk": (larger_than_flavor, "image.too_large", "flavor.disk"),
    "larger than it says": (larger_than_declared, "image.too_large", "flavor.disk"),
}


@pytest.mark.parametrize("case", BAD_IMAGES)
async def test_bad_image(agent: AgentProcess, cloud: Cloud, ear: Ear, tmp_path: Path, case: str) -> None:
    """A build from a bad image fails with its own code, the field and a remedy; the cache keeps nothing of it."""
    make, code, field = BAD_IMAGES[case]
    image = await make(cloud, tmp_path)
    fault = await failure(cloud, agent, ear, code, image__id=str(image))
    assert fault["field"] == field
    if field == "instance.image.id":
        assert str(image) in fault["message"]
    if code != "image.too_large":
        assert cloud.cached(image) == []


async def test_image_without_the_methods_property(agent: AgentProcess, cloud: Cloud, ear: Ear, tmp_path: Path) -> None:
    """An image that does not support encryption is refused by the name of the property."""
    image = await not_for_encryption(cloud, tmp_path)
    before = await agent.metrics()
    request = cloud.request(image__id=str(image))
    await cloud.order("build_and_run_instance", instance=request)
    view = await cloud.reached(UUID(request["uuid"]), "error")
    assert "hw_mem_encryption" in f"{view['fault']['field']} {view['fault']['message']}"
    assert view["fault"]["remedy"]
    await agent.counted(before, "sev_agent_builds_total", outcome="error")
    assert await cloud.left(UUID(request["uuid"])) == []


@pytest.mark.parametrize(
    ("field", "amount", "code", "text"),
    [
        # What the host has free is looked at before what Placement counts.
        ("memory_mb", 16 * 1024 * 1024, "host.memory_short", "MiB of RAM"),
        ("vcpus", 255, "placement.full", "VCPU"),
        ("root_gb", 64 * 1024, "placement.full", "DISK_GB"),
    ],
)
async def test_more_than_the_host_has(
    agent: AgentProcess, cloud: Cloud, ear: Ear, field: str, amount: int, code: str, text: str
) -> None:
    """A size that the schema takes and the host does not have is told by the flavor's field."""
    fault = await failure(cloud, agent, ear, code, **{f"flavor__{field}": amount})
    assert fault["retryable"]
    assert fault["field"] == f"instance.flavor.{field}"
    assert text in fault["message"]


async def test_good_build_after_bad_ones(agent: AgentProcess, cloud: Cloud, ear: Ear) -> None:
    """The daemon goes on after a failure: the next good build runs."""
    await failure(cloud, agent, ear, "image.not_found", image__id=str(uuid4()))
    assert await cloud.runs(await cloud.build())


@pytest_asyncio.fixture(loop_scope="session")
async def small_disk(agent: AgentProcess, cloud: Cloud) -> AsyncIterator[Path]:
    """The daemon's image directory, on a small disk of its own while the daemon does not run."""
    directory = cloud.images_dir
    await agent.stop()
    mounted = await run("mount", "-t", "tmpfs", "-o", f"size={TMPFS_MIB}m,mode=755", "sev-e2e", directory)
    assert mounted.status == 0, mounted.errors
    try:
        yield directory
    finally:
        if agent.is_running:
            await agent.stop()
        unmounted = await run("umount", directory)
        assert unmounted.status == 0, unmounted.errors


async def test_disk_fills_up_during_the_download(
    agent: AgentProcess, cloud: Cloud, ear: Ear, glance_proxy: StallingProxy, small_disk: Path, tmp_path: Path
) -> None:
    """A disk that others fill while an image arrives ends a build as image.no_space; with room again it arrives."""
    image = await upload_big(cloud, tmp_path)
    await agent.start(glance__endpoint=f"http://127.0.0.1:{glance_proxy.port}")

    before = await agent.metrics()
    uuid, _ = await begin_download(cloud, glance_proxy, image)
    filler = small_disk / ".filler"
    await run("sh", "-c", f"dd if=/dev/zero of={filler} bs=1M")
    glance_proxy.thaw()

    view = await cloud.reached(uuid, "error")
    assert (view["fault"]["code"], view["fault"]["field"]) == ("image.no_space", "instance.image.id")
    assert view["fault"]["remedy"]
    assert (await ear.hear(uuid, "sev.instance.create.error")).payload["fault"] == view["fault"]
    await agent.counted(before, "sev_agent_builds_total", outcome="error", code="image.no_space")
    assert await cloud.left(uuid) == []
    filler.unlink()
    assert cloud.cached(image) == []

    again = cloud.request(image__id=str(image))
    await cloud.order("build_and_run_instance", instance=again)
    # Not until it runs: the lab's libvirtd has mounts of its own, and does not see this disk.
    while "cache" not in [each.payload["step"] for each in ear.about(again["uuid"], "create.progress")]:
        await ear.more()
    assert len(cloud.cached(image)) == 1
