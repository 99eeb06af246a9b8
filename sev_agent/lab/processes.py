"""The processes of a lab: found by the mark in their environment, ended through descriptors of their own."""

import asyncio
import contextlib
import os
import select
import signal
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sev_agent.lab.service import LAB_VARIABLE, LEADER_VARIABLE, SERVICE_VARIABLE

_PROC = Path("/proc")


@dataclass(frozen=True, slots=True, kw_only=True)
class MarkedProcess:
    """A living process of a lab. ``started`` is seconds since the epoch; ``leader`` is the one that the lab started."""

    pid: int
    service: str
    leader: bool
    started: float
    command: str


def find(directory: Path, service: str | None = None) -> list[MarkedProcess]:
    """All processes that carry the mark of the lab at ``directory``, oldest first. Blocks shortly on /proc.

    Processes of root and of other users are seen alike when this runs as root. A zombie has no environment, so it
    is not found: it is as good as gone.
    """
    wanted = str(directory.resolve())
    boot_time = _boot_time()
    pids = [int(entry.name) for entry in _PROC.iterdir() if entry.name.isdecimal()]
    found = [marked for pid in pids if (marked := _read(pid, wanted, boot_time)) is not None]
    return sorted(
        (process for process in found if service is None or process.service == service),
        key=lambda process: (process.started, process.pid),
    )


def _read(pid: int, directory: str, boot_time: float) -> MarkedProcess | None:
    entry = _PROC / str(pid)
    try:
        environment = _environment(pid)
        if environment.get(LAB_VARIABLE) != directory:
            return None
        fields = (entry / "stat").read_bytes().rpartition(b")")[2].split()
        command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return None
    return MarkedProcess(
        pid=pid,
        service=environment.get(SERVICE_VARIABLE, ""),
        leader=environment.get(LEADER_VARIABLE) == str(pid),
        started=boot_time + int(fields[19]) / os.sysconf("SC_CLK_TCK"),
        command=command,
    )


def _environment(pid: int) -> dict[str, str]:
    pairs = (_PROC / str(pid) / "environ").read_bytes().split(b"\0")
    return {
        name.decode(errors="replace"): value.decode(errors="replace")
        for name, _, value in (pair.partition(b"=") for pair in pairs)
    }


def _boot_time() -> float:
    for line in (_PROC / "stat").read_text().splitlines():
        if line.startswith("btime "):
            return float(line.split()[1])
    return 0.0


@contextlib.contextmanager
def _descriptor(process: MarkedProcess, directory: Path) -> Iterator[int | None]:
    """A pidfd of ``process``, or ``None`` when it is gone; the pid may have been reused before it was opened."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except OSError:
        yield None
        return
    try:
        try:
            ours = _environment(process.pid).get(LAB_VARIABLE) == str(directory.resolve())
        except OSError:
            ours = False
        yield descriptor if ours else None
    finally:
        os.close(descriptor)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(process.pid, os.WNOHANG)


async def end(process: MarkedProcess, directory: Path, *, patience: float) -> bool:
    """SIGTERM, up to ``patience`` seconds, SIGKILL. True if the process was there and is gone now."""
    with _descriptor(process, directory) as descriptor:
        if descriptor is None:
            return False
        for number, limit in ((signal.SIGTERM, patience), (signal.SIGKILL, 10.0)):
            if limit <= 0:
                continue
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, number)
            if await _exited(descriptor, limit):
                return True
    return False


async def end_all(processes: Iterable[MarkedProcess], directory: Path, *, patience: float) -> list[MarkedProcess]:
    """End ``processes`` side by side; returns those that were there and are gone now."""
    processes = list(processes)
    gone = await asyncio.gather(*(end(process, directory, patience=patience) for process in processes))
    return [process for process, ended in zip(processes, gone, strict=True) if ended]


async def wait_exit(process: MarkedProcess, directory: Path, limit: float) -> bool:
    """Whether ``process`` is gone, at the latest after ``limit`` seconds."""
    with _descriptor(process, directory) as descriptor:
        return descriptor is None or await _exited(descriptor, limit)


async def _exited(descriptor: int, limit: float) -> bool:
    loop = asyncio.get_running_loop()
    exited = asyncio.Event()
    loop.add_reader(descriptor, exited.set)
    try:
        async with asyncio.timeout(limit):
            await exited.wait()
    except TimeoutError:
        return bool(select.select([descriptor], [], [], 0)[0])
    finally:
        loop.remove_reader(descriptor)
    return True
