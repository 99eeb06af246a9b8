"""Starting the lab's services and ending them; nothing about them is remembered but what /proc and the logs say."""

import asyncio
import contextlib
import os
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import structlog

from sev_agent.lab import processes
from sev_agent.lab.probe import tcp_answers
from sev_agent.lab.processes import MarkedProcess
from sev_agent.lab.progress import Progress
from sev_agent.lab.service import LEADER_VARIABLE, LabError, Say, Service, mark
from sev_agent.lab.side_by_side import side_by_side

_POLL = 0.1
_READY_PROBE = 5.0
_BUSY_PATIENCE = 20.0
"""Seconds for a service that was ready once to answer again, on a machine that is busy with everything else."""
_LEFTOVER_PATIENCE = 5.0
_SWEEPS = 5
_LOG_LINES = 25
# What becomes the service's process notes its own pid: a session's leader could be a child just as well.
_LAUNCH = f'cd "$1" && shift && export {LEADER_VARIABLE}=$$ && exec "$@"'
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

log = structlog.get_logger(__name__)


class ServiceError(LabError):
    """A service of the lab ended, or was not ready in time."""

    code = "lab.service_failed"


class State(StrEnum):
    """``STARTING`` is any process that runs and does not answer, for whatever reason."""

    READY = "ready"
    STARTING = "not ready"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceStatus:
    """What one service does now. ``since`` is seconds since the epoch."""

    name: str
    kind: str
    state: State
    pid: int | None
    since: float | None
    address: str
    platform: str
    log: Path


class Supervisor:
    """Starts, watches and ends the services of the lab at ``directory``."""

    def __init__(self, directory: Path, progress: Progress) -> None:
        self._directory = directory
        self._progress = progress

    def log_path(self, name: str) -> Path:
        return self._directory / "log" / f"{name}.log"

    async def start(self, service: Service) -> None:
        """Make ``service`` run and be ready; one that is both already stays as it is.

        Raises ``ServiceError`` with the last lines of its log.
        """
        with self._progress.step(service.name) as say:
            if await self._kept(service):
                say("was running")
                return
            await self.end_marked(service.name)
            if service.port is not None and await tcp_answers(service.port):
                raise ServiceError(
                    f"port {service.port} of 127.0.0.1, which {service.name} needs, is taken by a stranger",
                    remedy=f"end it (ss -ltnp 'sport = {service.port}' shows which)",
                )
            pid = await asyncio.to_thread(self._spawn, service)
            say(f"pid {pid}")
            await self._wait_ready(service, pid, say)

    async def start_side_by_side(self, services: Iterable[Service]) -> None:
        """Start ``services`` at once. The first failure is raised; the others' starts are given up."""
        await self.start_chains([service] for service in services)

    async def start_chains(self, chains: Iterable[Sequence[Service]]) -> None:
        """Start the services of each chain in their order, the chains side by side; failures as above."""

        async def start(chain: Sequence[Service]) -> None:
            for service in chain:
                await self.start(service)

        await side_by_side(*(start(chain) for chain in chains))

    async def stop(self, service: Service) -> list[MarkedProcess]:
        """End ``service`` and whatever it left behind; returns the processes ended."""
        leader = await self._leader(service.name)
        if leader is None:
            return await self.end_marked(service.name)
        with self._progress.step(service.name) as say:
            say("stopping")
            ended = await processes.end(leader, self._directory, patience=service.stop_timeout)
            rest = await self.end_marked(service.name)
            say(f"ended pid {leader.pid}")
        return [leader, *rest] if ended else rest

    async def stop_all(self, services: Sequence[Service]) -> list[MarkedProcess]:
        """End ``services`` one by one, the last first."""
        ended: list[MarkedProcess] = []
        for service in reversed(services):
            ended += await self.stop(service)
        return ended

    async def marked(self, service: str | None = None) -> list[MarkedProcess]:
        """Everything that carries the lab's mark, or the mark of one service."""
        return await asyncio.to_thread(processes.find, self._directory, service)

    async def end_marked(self, service: str | None = None) -> list[MarkedProcess]:
        """End everything that carries the mark, also what is started meanwhile by what is being ended."""
        ended: list[MarkedProcess] = []
        for _ in range(_SWEEPS):
            left = await self.marked(service)
            if not left:
                break
            ended += await processes.end_all(left, self._directory, patience=_LEFTOVER_PATIENCE)
        return ended

    async def status(self, service: Service) -> ServiceStatus:
        leader = await self._leader(service.name)
        state = State.STOPPED
        if leader is not None:
            state = State.READY if await _answers(service) else State.STARTING
        return ServiceStatus(
            name=service.name,
            kind=service.kind,
            state=state,
            pid=leader.pid if leader else None,
            since=leader.started if leader else None,
            address=service.address,
            platform=service.platform,
            log=self.log_path(service.name),
        )

    async def _kept(self, service: Service) -> bool:
        """Whether the service runs and is ready, given its time if it is busy, or was left half way to its start."""
        leader = await self._leader(service.name)
        if leader is None:
            return False
        patience = min(service.ready_timeout, _BUSY_PATIENCE)
        deadline = max(leader.started + service.ready_timeout, time.time() + patience)
        while not await _answers(service):
            if time.time() > deadline or await processes.wait_exit(leader, self._directory, _POLL):
                log.warning("lab.service.replaced", service=service.name, pid=leader.pid)
                await processes.end(leader, self._directory, patience=service.stop_timeout)
                return False
        return True

    async def _leader(self, name: str) -> MarkedProcess | None:
        return next((process for process in await self.marked(name) if process.leader), None)

    def _spawn(self, service: Service) -> int:
        """Start the process in a session of its own, so that it outlives this one. Blocks shortly."""
        path = self.log_path(service.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as output:
            output.write(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} lab starts {service.name}\n".encode())
        environment = {
            "PATH": _PATH,
            "LANG": "C.UTF-8",
            "HOME": str(self._directory),
            **service.environment,
            **mark(self._directory, service.name),
        }
        # posix_spawn, since subprocess and asyncio each own their child and would end it or warn when they go.
        _keep_descriptors()
        command = ("/bin/sh", "-c", _LAUNCH, "sh", str(service.cwd or self._directory), *service.command)
        opened = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        return os.posix_spawn(
            command[0],
            command,
            environment,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, str(path), opened, 0o640),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
            setsid=True,
        )

    async def _wait_ready(self, service: Service, pid: int, say: Say) -> None:
        deadline = time.monotonic() + service.ready_timeout
        while True:
            if (code := await asyncio.to_thread(_exit_code, pid)) is not None:
                raise self._failed(service, f"ended with status {code} while starting")
            if await _answers(service):
                say(f"ready, pid {pid}" + (f", {service.address}" if service.address else ""))
                return
            if time.monotonic() > deadline:
                raise self._failed(service, f"was not ready after {service.ready_timeout:g} s")
            await asyncio.sleep(_POLL)

    def _failed(self, service: Service, what: str) -> ServiceError:
        path = self.log_path(service.name)
        lines = "".join(f"\n  {line}" for line in last_lines(path, _LOG_LINES))
        return ServiceError(f"{service.name} {what}; its last lines:{lines}\n", remedy=f"the whole log is {path}")


def last_lines(path: Path, count: int) -> list[str]:
    """The last ``count`` lines of a log; of a log that is not there, none."""
    try:
        with path.open(errors="replace") as file:
            return [line.rstrip("\n") for line in deque(file, maxlen=count)]
    except FileNotFoundError:
        return []


def _keep_descriptors() -> None:
    """Let no child have what the lab's command was started with: a lock would be held, a pipe be open for days."""
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - names alone are wanted
        if int(name) > 2:
            with contextlib.suppress(OSError):
                os.set_inheritable(int(name), False)  # noqa: FBT003 - it takes no name


def _exit_code(pid: int) -> int | None:
    try:
        ended, status = os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return -1
    return os.waitstatus_to_exitcode(status) if ended else None


async def _answers(service: Service) -> bool:
    try:
        async with asyncio.timeout(_READY_PROBE):
            return await service.ready()
    except (OSError, TimeoutError):
        return False
