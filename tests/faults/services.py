"""What the daemon leans on, in the hands of a test: stopped, killed, started, cut off, made to hang or to lie."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from sev_agent.lab import processes
from sev_agent.lab.cloud import Lab
from sev_agent.lab.probe import tcp_answers
from sev_agent.lab.processes import MarkedProcess
from sev_agent.lab.service import GUESTS
from tests.e2e.cloud import Cloud
from tests.e2e.waiting import eventually
from tests.proxy import Proxy

_END_SECONDS = 10.0
_CHUNK = 4096


class Leaned(StrEnum):
    """A service that the daemon leans on, by the name that ``/readyz`` has for it."""

    LIBVIRT = "libvirt"
    BROKER = "broker"
    PLACEMENT = "placement"
    KEYSTONE = "keystone"
    GLANCE = "glance"


@dataclass(frozen=True, slots=True, kw_only=True)
class Between:
    """A proxy before each service that is reached by TCP; all of the daemon's connections go through them."""

    broker: Proxy
    placement: Proxy
    keystone: Proxy
    glance: Proxy

    def before(self, service: Leaned) -> Proxy:
        proxy: Proxy = getattr(self, service.value)
        return proxy

    @property
    def all(self) -> tuple[Proxy, ...]:
        return (self.broker, self.placement, self.keystone, self.glance)

    def settings(self, lab: Lab) -> dict[str, str]:
        """The daemon's settings that lead through the proxies."""
        return {
            "messaging__url": _at(lab.rabbit_url, self.broker.port),
            "placement__endpoint": _at(lab.placement_url, self.placement.port),
            "auth__auth_url": _at(f"{lab.keystone_url}/v3", self.keystone.port),
            "glance__endpoint": _at(lab.glance_url, self.glance.port),
        }

    def heal(self) -> None:
        """Let everything pass again."""
        for proxy in self.all:
            proxy.heal()


def _at(url: str, port: int) -> str:
    parts = urlsplit(url)
    user, at, _ = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{user}{at}127.0.0.1:{port}"))


@asynccontextmanager
async def between(lab: Lab) -> AsyncIterator[Between]:
    async with AsyncExitStack() as stack:
        ports = lab.cloud.ports
        names = {"broker": "rabbitmq", "placement": "placement", "keystone": "keystone", "glance": "glance"}
        proxies = {name: await stack.enter_async_context(Proxy(ports[port])) for name, port in names.items()}
        yield Between(**proxies)


@dataclass(kw_only=True)
class Services:
    """The lab's services as processes. ``kill`` is SIGKILL, ``freeze`` SIGSTOP; ``heal`` makes all of them well."""

    cloud: Cloud
    _frozen: set[Leaned] = field(default_factory=set)
    _impostor: asyncio.Server | None = None

    async def kill(self, service: Leaned) -> None:
        """End it at once; what it started and what outlives it in reality, as guests outlive libvirtd, stays."""
        await self._signal(service, signal.SIGKILL)
        self._frozen.discard(service)
        await eventually(lambda: self._is_gone(service), within=_END_SECONDS, what=f"{service} is gone")

    async def freeze(self, service: Leaned) -> None:
        self._frozen.add(service)
        await self._signal(service, signal.SIGSTOP)

    async def thaw(self, service: Leaned) -> None:
        self._frozen.discard(service)
        await self._signal(service, signal.SIGCONT)

    async def impersonate_libvirt(self, answer: bytes) -> None:
        """Have something that says ``answer`` to everybody listen in libvirtd's place."""

        async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError):
                await reader.read(_CHUNK)
                writer.write(answer)
                await writer.drain()
                writer.close()
                await writer.wait_closed()

        self._socket.rename(self._hidden_socket)
        self._impostor = await asyncio.start_unix_server(say, self._socket)

    async def _expose(self) -> None:
        if self._impostor is not None:
            self._impostor.close()
            self._impostor = None
            # What was bound moved with its name, and is libvirtd's still.
            self._hidden_socket.rename(self._socket)

    @property
    def _socket(self) -> Path:
        return self.cloud.host.directory / "run/libvirt-sock"

    @property
    def _hidden_socket(self) -> Path:
        return self._socket.with_name("hidden-sock")

    async def start(self, service: Leaned) -> None:
        """Start it, and return when it is ready; harmless where it is."""
        if service is Leaned.LIBVIRT and not await self._processes(service):
            await asyncio.to_thread(self._forget_half_starts)
        await self.cloud.supervisor.start(self.cloud.service(self._names[service]))

    async def heal(self) -> None:
        await self._expose()
        for service in tuple(self._frozen):
            await self.thaw(service)
        for service in Leaned:
            await self.start(service)

    def half_started(self) -> list[Path]:
        """The files of domains that a killed libvirtd was starting: it had not noted their pid yet."""
        files = (self.cloud.host.directory / "run/qemu").glob("*.xml")
        return [path for path in files if " pid='0'>" in path.read_text()]

    def _forget_half_starts(self) -> None:
        """Do what only root on the host can do for a domain that a killed libvirtd was starting; blocks shortly.

        The next libvirtd would believe for ever that it is still being started (tried with 11.3).
        """
        for path in self.half_started():
            path.unlink()
            for process in processes.find(self.cloud.lab.directory, GUESTS):
                if f"guest={path.stem}," in process.command:
                    _send(process, signal.SIGKILL)

    async def _is_gone(self, service: Leaned) -> bool:
        port = self.cloud.service(self._names[service]).port
        return not await self._processes(service) and (port is None or not await tcp_answers(port))

    async def _processes(self, service: Leaned) -> list[MarkedProcess]:
        # libvirtd's first parent collects the guests that end: on a real host that is init, which does not fail.
        marked = await self.cloud.supervisor.marked(self._names[service])
        return [process for process in marked if not process.command.startswith("tini ")]

    async def _signal(self, service: Leaned, number: signal.Signals) -> None:
        for process in await self._processes(service):
            _send(process, number)

    @cached_property
    def _names(self) -> dict[Leaned, str]:
        return {
            Leaned.LIBVIRT: f"{self.cloud.host.name}-libvirtd",
            Leaned.BROKER: "rabbitmq",
            Leaned.PLACEMENT: "placement",
            Leaned.KEYSTONE: "keystone",
            Leaned.GLANCE: "glance",
        }


def _send(process: MarkedProcess, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        descriptor = os.pidfd_open(process.pid)
        try:
            signal.pidfd_send_signal(descriptor, number)
        finally:
            os.close(descriptor)
