"""Where the benchmarks play: a lab of their own, the daemon of its one host, and everything to set them going."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from rich.console import Console

from sev_agent.cli.following import follow_deletion
from sev_agent.cli.remote import Remote, connected
from sev_agent.config import load
from sev_agent.hypervisor.events import Lifecycle
from sev_agent.lab.cloud import Lab
from sev_agent.lab.host import Host
from sev_agent.messaging import topology
from sev_agent.openstack.glance import Image
from tests.bench import bare, daemon, guests

SLOTS: Final = 30
CONNECTIONS: Final = 10

_BUILD_SECONDS = 120.0
_POLL_SECONDS = 0.05
_SETTLE_SECONDS = 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A lab without a daemon, the image for the guests, and the console to tell on how it goes."""

    lab: Lab
    host: Host
    image: Image
    console: Console

    def daemon(self) -> AbstractAsyncContextManager[daemon.Daemon]:
        """The host's daemon, started now."""
        return daemon.running(self.lab.agent_config(self.host), self.lab.log_path(f"agent-{self.host.name}"))

    @contextlib.asynccontextmanager
    async def scene(self) -> AsyncIterator["Scene"]:
        """A daemon that is ready and has the image in its cache, and libvirt beside it."""
        async with (
            self.daemon() as process,
            bare.opened(self.host.uri, connections=CONNECTIONS) as libvirt,
            connected(self.lab.rabbit_url, self.host.name) as remote,
        ):
            await process.wait_ready()
            await _taking_work(remote)
            config = load(self.lab.agent_config(self.host), {})
            bare_guests = guests.BareGuests(config, self.image, self.host.directory / "bare")
            scene = Scene(daemon=process, libvirt=libvirt, remote=remote, image=self.image, bare=bare_guests)
            await scene.discard([await scene.build()])
            yield scene


async def _taking_work(remote: Remote) -> None:
    """Return once the daemon consumes its work queue, which it declares right after it is ready."""
    queue = topology.work_queue_name(remote.host)
    async with asyncio.timeout(_BUILD_SECONDS):
        while not await remote.client.consumer_count(queue):  # noqa: ASYNC110 - the broker tells nobody of it
            await asyncio.sleep(_POLL_SECONDS)


@dataclass(slots=True, kw_only=True)
class Scene:
    """One daemon at work. Times are of ``time.monotonic``, in seconds."""

    daemon: daemon.Daemon
    libvirt: bare.Libvirt
    remote: Remote
    image: Image
    bare: guests.BareGuests

    async def build(self) -> "Made":
        """Publish a build, and see the guest start."""
        instance = guests.request(self.image.id)
        begun = time.monotonic()
        await self.remote.client.cast(
            "build_and_run_instance", {"instance": instance}, queue=topology.work_queue_name(self.remote.host)
        )
        uuid = UUID(instance["uuid"])
        try:
            return await self.started(uuid, begun)
        except TimeoutError:
            await self._settled(uuid)
            raise

    async def create(self, uuid: UUID, xml: str) -> "Made":
        """The same by libvirt alone, of a guest that is ready to be made."""
        begun = time.monotonic()
        await self.libvirt.create(xml)
        return await self.started(uuid, begun)

    async def discard(self, made: "list[Made]") -> None:
        """End guests that the daemon built, and wait until all is quiet."""
        await asyncio.gather(*(self._discard(each.uuid) for each in made))
        await asyncio.sleep(_SETTLE_SECONDS)

    async def settle(self, made: "Made") -> None:
        """Wait until the daemon has ended the build, and all is quiet."""
        await self._settled(made.uuid)
        await asyncio.sleep(_SETTLE_SECONDS)

    async def remove(self, made: "list[Made]") -> None:
        """End guests that libvirt alone made."""
        for each in made:
            await self.libvirt.remove(each.uuid)
        await asyncio.sleep(_SETTLE_SECONDS)

    async def _discard(self, uuid: UUID) -> None:
        await self._settled(uuid)
        await follow_deletion(self.remote, str(uuid), limit=_BUILD_SECONDS)

    async def started(self, uuid: UUID, begun: float) -> "Made":
        """Wait until the guest of ``uuid``, asked for at ``begun``, has started."""
        started = await self.libvirt.when(uuid, Lifecycle.STARTED)
        await self.libvirt.suspend(uuid)
        return Made(uuid, begun, started)

    async def _settled(self, uuid: UUID) -> None:
        """Raises ``AssertionError`` with the fault of a build that failed."""
        async with asyncio.timeout(_BUILD_SECONDS):
            while (view := await self._view(uuid))["state"] not in {"active", "error"}:  # noqa: ASYNC110 - a state
                await asyncio.sleep(_POLL_SECONDS)  # of another process; its notifications would be more to measure
        assert view["state"] == "active", view["fault"]

    async def _view(self, uuid: UUID) -> Mapping[str, Any]:
        view: Any = await self.remote.ask("get_instance", instance_uuid=str(uuid))
        return dict(view)


@dataclass(frozen=True, slots=True)
class Made:
    """A guest, when it was asked for and when libvirt said that it had started."""

    uuid: UUID
    begun: float
    started: float

    @property
    def seconds(self) -> float:
        return self.started - self.begun
