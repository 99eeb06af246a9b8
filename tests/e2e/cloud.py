"""The lab as the tests see it: what can be asked of its broker, its libvirtd, its Placement, its Glance, its disk."""

import asyncio
import contextlib
import copy
import hashlib
import sqlite3
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from pydantic import JsonValue

from sev_agent.compute.image_download import INCOMING_PREFIX
from sev_agent.compute.instance_files import InstanceFiles
from sev_agent.domain.identity import domain_name
from sev_agent.lab.cloud import Lab
from sev_agent.lab.host import Host
from sev_agent.lab.platform.compute_host import ComputeHost
from sev_agent.lab.platform.namespace import EMULATOR
from sev_agent.lab.progress import Silent
from sev_agent.lab.service import Service
from sev_agent.lab.supervisor import Supervisor
from sev_agent.messaging import topology
from sev_agent.messaging.broker import Broker, Delivery
from sev_agent.messaging.client import RemoteError, RpcClient
from sev_agent.openstack.glance import Glance
from sev_agent.openstack.placement import Placement, Provider
from sev_agent.sev import tags
from sev_agent.sev.generation import RESOURCE_CLASS, Generation
from tests.e2e.agent_process import AgentProcess
from tests.e2e.waiting import eventually
from tests.images import make_qcow2

BUILD_SECONDS = 60.0
_CALL_SECONDS = 20.0
_REWRITE_SECONDS = 2.0
_RECORD_BEING_WRITTEN = "/.instance.json."
_UPLOAD_SECONDS = 60.0


@dataclass(frozen=True)
class Result:
    """How a program ended."""

    status: int
    output: str
    errors: str


async def run(*command: str | Path, environment: Mapping[str, str] | None = None) -> Result:
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=environment,
    )
    try:
        output, errors = await asyncio.wait_for(process.communicate(), 120)
    except BaseException:
        if process.returncode is None:
            process.kill()
        raise
    return Result(process.returncode or 0, output.decode(), errors.decode())


@dataclass(frozen=True)
class DeadLetter:
    """A message that could not be used, with the reason that the daemon gave."""

    body: bytes
    headers: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Cloud:
    """One host of a lab, and the services around it.

    ``blank`` is an image without a system: enough to start a guest, not to boot it.
    ``kept`` are instances that outlive the test that made them.
    """

    lab: Lab
    agent: AgentProcess
    broker: Broker
    rpc: RpcClient
    glance: Glance
    placement: Placement
    blank: UUID
    index: int = 0
    kept: set[UUID] = field(default_factory=set)

    @property
    def host(self) -> ComputeHost:
        host: Host = self.lab.hosts[self.index]
        assert isinstance(host, ComputeHost), "these tests count the slots of a simulated platform"
        return host

    @property
    def slots(self) -> int:
        return self.host.slots

    @property
    def state_dir(self) -> Path:
        return self.host.directory / "agent"

    @property
    def images_dir(self) -> Path:
        return self.state_dir / "images"

    def files(self, uuid: UUID) -> InstanceFiles:
        return InstanceFiles(self.state_dir / "instances" / str(uuid))

    # The host daemon.

    def request(self, **changes: Any) -> dict[str, Any]:
        """A good request of a small guest, apart from ``changes`` (``flavor__vcpus=2``)."""
        request: dict[str, Any] = {
            "uuid": str(uuid4()),
            "name": "guest",
            "flavor": {
                "name": "small",
                "vcpus": 1,
                "memory_mb": 64,
                "root_gb": 1,
                "extra_specs": {"hw:mem_encryption": "true"},
            },
            "image": {"id": str(self.blank)},
            "networks": [{"type": "none"}],
        }
        for path, value in changes.items():
            *parents, name = path.split("__")
            place = request
            for parent in parents:
                place = place[parent]
            place[name] = value
        return copy.deepcopy(request)

    async def ask(self, method: str, **arguments: Any) -> Any:
        queue = topology.query_queue_name(self.host.name)
        return await self.rpc.call(method, arguments, queue=queue, timeout=_CALL_SECONDS)

    async def order(self, method: str, **arguments: Any) -> JsonValue:
        queue = topology.work_queue_name(self.host.name)
        return await self.rpc.call(method, arguments, queue=queue, timeout=_CALL_SECONDS)

    async def cast(self, method: str, **arguments: Any) -> None:
        await self.rpc.cast(method, arguments, queue=topology.work_queue_name(self.host.name))

    async def post(self, body: bytes, *, queue: str | None = None) -> None:
        """Put ``body`` into ``queue``, or else into the work queue, as it is."""
        queue = queue or topology.work_queue_name(self.host.name)
        await self.broker.publish(body, Delivery(exchange=topology.EXCHANGE, routing_key=queue))

    async def consumers(self) -> int | None:
        return await self.rpc.consumer_count(topology.work_queue_name(self.host.name))

    async def view(self, uuid: UUID | str) -> dict[str, Any] | None:
        try:
            view: dict[str, Any] = await self.ask("get_instance", instance_uuid=str(uuid))
        except RemoteError as error:
            if error.code != "instance.not_found":
                raise
            return None
        return view

    async def build(self, **changes: Any) -> UUID:
        """Have a good guest built, and return when it runs."""
        request = self.request(**changes)
        await self.order("build_and_run_instance", instance=request)
        uuid = UUID(request["uuid"])
        await self.reached(uuid, "active")
        return uuid

    async def reached(self, uuid: UUID | str, state: str, *, within: float = BUILD_SECONDS) -> dict[str, Any]:
        """The view of the instance once it is in ``state``; another state that stays is a failure."""

        async def there() -> dict[str, Any] | None:
            view = await self.view(uuid)
            assert view is not None, f"instance {uuid} is not there"
            assert view["state"] in {state, "building", "failing"}, view["fault"] or view
            return view if view["state"] == state else None

        found = await eventually(there, within=within, what=f"instance {uuid} is {state}")
        assert found is not None
        return found

    async def delete(self, uuid: UUID) -> None:
        """Have the instance deleted, and return when it is."""
        await self.order("terminate_instance", instance_uuid=str(uuid))
        await self.gone(uuid)

    async def gone(self, uuid: UUID | str) -> None:
        async def gone() -> bool:
            return await self.view(uuid) is None

        await eventually(gone, within=BUILD_SECONDS, what=f"instance {uuid} is deleted")

    async def dead_letters(self) -> list[DeadLetter]:
        """Take everything out of the dead-letter queue."""
        channel = await (await self.broker.wait_up(10)).channel()
        queue = await channel.get_queue(topology.DEAD_LETTER_QUEUE)
        letters = []
        while (message := await queue.get(no_ack=True, fail=False)) is not None:
            letters.append(DeadLetter(message.body, dict(message.headers)))
        await channel.close()
        return letters

    # What is really there.

    async def virsh(self, *arguments: str) -> Result:
        return await run("virsh", "--quiet", "--connect", self.host.uri, *arguments)

    async def domains(self, *, running: bool = False) -> set[UUID]:
        """The UUIDs of what libvirt has, whoever made it."""
        chosen = "--state-running" if running else "--all"
        listed = await self.virsh("list", chosen, "--uuid")
        assert listed.status == 0, listed.errors
        return {UUID(line) for line in listed.output.split()}

    async def runs(self, uuid: UUID) -> bool:
        return uuid in await self.domains(running=True)

    async def slots_used(self, generation: Generation = Generation.SEV) -> int:
        """What Placement itself adds up."""
        return (await self.placement.usages((await self.child(generation)).uuid)).get(RESOURCE_CLASS, 0)

    async def root(self) -> Provider:
        found = await self.placement.find_provider(self.host.name)
        assert found is not None
        return found

    async def child(self, generation: Generation = Generation.SEV) -> Provider:
        found = await self.placement.find_provider(generation.provider_name(self.host.name))
        assert found is not None
        return found

    def firmware_slots_used(self, pool: str = "sev") -> int:
        """What the simulated secure processor holds; blocks shortly."""
        return self.host.firmware_slots.used(pool)

    def processes(self, uuid: UUID) -> list[int]:
        """The QEMU processes of an instance; blocks shortly."""
        return self.processes_of(domain_name(uuid))

    @staticmethod
    def processes_of(domain: str) -> list[int]:
        """The QEMU processes of a domain, by its name; blocks shortly."""
        name = f"guest={domain},".encode()
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal():
                try:
                    command = (entry / "cmdline").read_bytes()
                    # The emulator shim before QEMU has the same arguments.
                    is_qemu = name in command and (entry / "exe").readlink().name == EMULATOR.name
                except OSError:
                    continue
                if is_qemu:
                    found.append(int(entry.name))
        return found

    async def left(self, uuid: UUID | str) -> list[str]:
        """What is there of an instance that should have nothing but its record.

        The record is written once more when its last notification is out: a look in just that moment is repeated.
        """
        uuid = UUID(str(uuid))
        deadline = time.monotonic() + _REWRITE_SECONDS
        while True:
            found = await self._left(uuid)
            rewriting = bool(found) and all(_RECORD_BEING_WRITTEN in what for what in found)
            if not rewriting or time.monotonic() > deadline:
                return found
            await asyncio.sleep(_REWRITE_SECONDS / 20)

    async def _left(self, uuid: UUID) -> list[str]:
        found = []
        if uuid in await self.domains():
            found.append("a domain")
        directory = self.files(uuid).directory
        if directory.exists():
            found += [str(path) for path in directory.iterdir() if path.name != "instance.json"]
        if (held := await self.placement.allocation(uuid)) is not None:
            found.append(f"an allocation of {held.resources}")
        found += [f"a process {pid}" for pid in self.processes(uuid)]
        if self.images_dir.exists():
            found += [str(path) for path in self.images_dir.glob(f"{INCOMING_PREFIX}*")]
        return found

    def cached(self, image: UUID) -> list[Path]:
        """The files of an image in the daemon's cache."""
        return list(self.images_dir.glob(f"{image}*"))

    # What is put in.

    async def upload(
        self, path: Path | None, *, disk_format: str = "qcow2", container_format: str = "bare", **properties: str
    ) -> UUID:
        """A new image with the method's properties; without ``path`` it stays without data."""
        image = await self.glance.create_image(
            "test",
            disk_format=disk_format,
            container_format=container_format,
            visibility="public",
            properties={**tags.IMAGE, **properties},
        )
        if path is not None:
            await self.glance.upload(image.id, path, total_timeout=_UPLOAD_SECONDS)
        return image.id

    async def smuggle(self, path: Path) -> UUID:
        """A new image with the content of ``path``, called qcow2 whatever it is.

        Today's Glance inspects what is uploaded. One of before 2024 took anything, and what it took is still served.
        """
        image = await self.upload(make_qcow2(path.with_name("placeholder.qcow2")))
        await asyncio.to_thread(self._replace_content, image, path)
        return image

    def _replace_content(self, image: UUID, path: Path) -> None:
        content = path.read_bytes()
        self.stored(image).write_bytes(content)
        with contextlib.closing(sqlite3.connect(self.lab.directory / "glance/glance.db", timeout=10)) as database:
            changed = database.execute(
                "UPDATE images SET size = ?, virtual_size = NULL, checksum = ?, os_hash_value = ? WHERE id = ?",
                (
                    len(content),
                    hashlib.md5(content, usedforsecurity=False).hexdigest(),
                    hashlib.sha512(content).hexdigest(),
                    str(image),
                ),
            )
            database.commit()
            assert changed.rowcount == 1

    def stored(self, image: UUID) -> Path:
        """Glance's own copy of an image."""
        return self.lab.directory / "glance/images" / str(image)

    # The services below.

    @property
    def supervisor(self) -> Supervisor:
        return Supervisor(self.lab.directory, Silent())

    def service(self, name: str) -> Service:
        """A service of the lab."""
        return next(service for service in self.lab._services() if service.name == name)
