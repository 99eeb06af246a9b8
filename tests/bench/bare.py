"""libvirt without us: the same guest made by the two calls that nobody can do without; and the witness of both."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar
from uuid import UUID

import libvirt  # noqa: TID251 - bare libvirt is what is measured here

from sev_agent.config import HypervisorSection
from sev_agent.hypervisor.connection import Hypervisor
from sev_agent.hypervisor.events import Lifecycle, LifecycleEvent

T = TypeVar("T")

_CONNECT_SECONDS = 10.0
_EVENT_SECONDS = 60.0


class Libvirt:
    """Connections of the benchmark's own to one libvirtd, and the times at which its events came."""

    def __init__(self, uri: str, connections: int) -> None:
        self._pool = ThreadPoolExecutor(connections)
        self._handles: asyncio.Queue[libvirt.virConnect] = asyncio.Queue()
        self._uri = uri
        self._connections = connections
        self._awaited: dict[tuple[UUID, Lifecycle], asyncio.Future[float]] = {}

    async def open(self) -> None:
        for _ in range(self._connections):
            self._handles.put_nowait(await self._in_thread(partial(libvirt.open, self._uri)))

    async def close(self) -> None:
        while not self._handles.empty():
            await self._in_thread(self._handles.get_nowait().close)
        self._pool.shutdown()

    def seen(self, event: LifecycleEvent) -> None:
        """Take an event; each of a domain's and kind's first counts."""
        awaited = self._when(event.uuid, event.event)
        if not awaited.done():
            awaited.set_result(event.received)

    async def when(self, uuid: UUID, event: Lifecycle) -> float:
        """The time of ``event``, in the past or to come, by ``time.monotonic``."""
        async with asyncio.timeout(_EVENT_SECONDS):
            return await asyncio.shield(self._when(uuid, event))

    async def create(self, xml: str) -> None:
        """Define and start, and nothing else."""
        async with self._handle() as handle:
            await self._in_thread(lambda: handle.defineXML(xml).create())

    async def suspend(self, uuid: UUID) -> None:
        """Stop the guest's processors, so that its boot takes none of the time of what is measured next."""
        async with self._handle() as handle:
            await self._in_thread(lambda: handle.lookupByUUID(uuid.bytes).suspend())

    async def remove(self, uuid: UUID) -> None:
        async with self._handle() as handle:
            await self._in_thread(lambda: _remove(handle, uuid))

    def _when(self, uuid: UUID, event: Lifecycle) -> asyncio.Future[float]:
        key = (uuid, event)
        if key not in self._awaited:
            self._awaited[key] = asyncio.get_running_loop().create_future()
        return self._awaited[key]

    async def _in_thread(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, call)

    @contextlib.asynccontextmanager
    async def _handle(self) -> AsyncIterator[libvirt.virConnect]:
        handle = await self._handles.get()
        try:
            yield handle
        finally:
            self._handles.put_nowait(handle)


@contextlib.asynccontextmanager
async def opened(uri: str, *, connections: int) -> AsyncIterator[Libvirt]:
    """Connections for ``connections`` calls at once, each its own: libvirtd serves few requests of one at a time."""
    calls = Libvirt(uri, connections)
    witness = Hypervisor(HypervisorSection(uri=uri), on_event=calls.seen, on_change=lambda _: None)
    task = asyncio.create_task(witness.run(), name="witness")
    try:
        await witness.wait_up(_CONNECT_SECONDS)
        await calls.open()
        yield calls
    finally:
        await calls.close()
        task.cancel()
        await asyncio.wait({task})


def _remove(handle: libvirt.virConnect, uuid: UUID) -> None:
    domain = handle.lookupByUUID(uuid.bytes)
    if domain.isActive():
        domain.destroy()
    domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_NVRAM)
