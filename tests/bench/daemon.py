"""The daemon under measurement: a process of its own, started as its systemd unit starts it."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Final

UNIT: Final = Path(__file__).parents[2] / "systemd" / "sev-agent.service"

_READY_SECONDS = 60.0
_STOP_SECONDS = 60.0
_WATCHDOG_USEC = "30000000"
_TICKS = os.sysconf("SC_CLK_TCK")


class Daemon:
    """A running daemon. Its times are of ``time.monotonic``, in seconds."""

    def __init__(self, process: asyncio.subprocess.Process, started: float) -> None:
        self._process = process
        self._started = started
        self._ready: asyncio.Future[float] = asyncio.get_running_loop().create_future()

    async def wait_ready(self) -> float:
        """Seconds from the start of the process until libvirt, the broker and Placement could all be used."""
        async with asyncio.timeout(_READY_SECONDS):
            return await asyncio.shield(self._ready) - self._started

    async def stop(self) -> float:
        """Seconds from SIGTERM to the end of the process."""
        begun = time.monotonic()
        self._process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(_STOP_SECONDS):
            await self._process.wait()
        return time.monotonic() - begun

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Let it do nothing meanwhile; for seconds only, or what it is connected to gives it up."""
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    def resident_mb(self) -> float:
        """What of it is in memory, shared pages included: VmRSS in MiB."""
        return resident_mb(self._process.pid)

    def cpu_seconds(self) -> float:
        """All that it has computed so far, in ticks of 10 ms."""
        return cpu_seconds(self._process.pid)

    async def follow(self, log: Path) -> None:
        """Keep what it logs in the file ``log``, and note when it says that it is ready."""
        assert self._process.stderr is not None
        with log.open("ab") as file:
            async for line in self._process.stderr:
                if not self._ready.done() and _event(line) == "agent.ready":
                    self._ready.set_result(time.monotonic())
                file.write(line)
        if not self._ready.done():
            self._ready.set_exception(RuntimeError(f"the daemon ended before it was ready; see {log}"))

    async def end(self) -> None:
        if self._process.returncode is None:
            try:
                await self.stop()
            finally:
                with contextlib.suppress(ProcessLookupError):
                    self._process.kill()
                await self._process.wait()


@contextlib.asynccontextmanager
async def running(configuration: Path, log: Path) -> AsyncIterator[Daemon]:
    """A daemon with ``configuration``; it is ended with the context, if it has not ended before."""
    command = Path(sys.executable).with_name("sev-agent")
    with _service_manager(log.with_suffix(".notify")) as address:
        started = time.monotonic()
        process = await asyncio.create_subprocess_exec(
            str(command),
            "run",
            "--config",
            str(configuration),
            stdin=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            env=environment(address),
            limit=1024 * 1024,
        )
        daemon = Daemon(process, started)
        following = asyncio.create_task(daemon.follow(log), name="daemon-log")
        try:
            yield daemon
        finally:
            await daemon.end()
            await following


def environment(notify_socket: Path) -> Mapping[str, str]:
    """What systemd gives it: little, what the unit sets, and the watchdog that it has to feed."""
    lines = UNIT.read_text().splitlines()
    settings = dict(line.split("=", 2)[1:] for line in lines if line.startswith("Environment="))
    return {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin",
        "LANG": "C.UTF-8",
        # What is measured is this tree, also where another one is installed.
        "PYTHONPATH": str(UNIT.parents[1]),
        **settings,
        "NOTIFY_SOCKET": str(notify_socket),
        "WATCHDOG_USEC": _WATCHDOG_USEC,
        # Two processors times the default of four would be full before all the guests are there.
        "SEV_AGENT_PLACEMENT__CPU_ALLOCATION_RATIO": "64",
    }


@contextlib.contextmanager
def _service_manager(path: Path) -> Iterator[Path]:
    """Take what the daemon would tell systemd."""
    path.unlink(missing_ok=True)
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as channel:
        channel.bind(str(path))
        loop.add_reader(channel, channel.recv, 4096)
        try:
            yield path
        finally:
            loop.remove_reader(channel)
            path.unlink()


def resident_mb(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise ProcessLookupError(pid)


def cpu_seconds(pid: int) -> float:
    """All that a process and the children it waited for have computed so far, in ticks of 10 ms."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / _TICKS


def _event(line: bytes) -> str | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record.get("event") if isinstance(record, dict) else None
