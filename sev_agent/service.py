"""What every daemon shares: supervised tasks, a stop by signal, and the conversation with systemd."""

import asyncio
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Final

import structlog

log = structlog.stdlib.get_logger(__name__)

WATCHDOG_FRACTION = 3
"""The watchdog is fed this many times in each of its periods, so that one late turn is no death."""

END_SECONDS: Final = 15.0
"""How long a daemon whose work is over waits for threads that hang, before it leaves them behind."""

CUT_OFF: Final = 1
"""The exit status then."""


def run(work: Coroutine[Any, Any, None], *, end_seconds: float = END_SECONDS) -> None:
    """Run a daemon's ``work`` to its end, and raise what it raises.

    Python then waits for its threads without end, and one that waits for a disk or a device may never return. After
    ``end_seconds`` the process is cut off, as by a loss of power, which every journal survives.
    """
    end = threading.Timer(end_seconds, _cut_off)
    end.daemon = True

    async def work_and_end() -> None:
        try:
            await work
        finally:
            end.start()

    try:
        asyncio.run(work_and_end())
    finally:
        end.cancel()


def _cut_off() -> None:
    log.error("service.cut_off", threads=sorted(each.name for each in threading.enumerate() if not each.daemon))
    os._exit(CUT_OFF)


class ServiceManager:
    """The notification socket of systemd (sd_notify(3)); silent where there is none."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._address = environment.get("NOTIFY_SOCKET", "")
        self._watchdog_usec = int(environment.get("WATCHDOG_USEC") or 0)
        if environment.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
            self._watchdog_usec = 0

    @property
    def watchdog_period(self) -> float | None:
        """Seconds after which systemd takes a silent service for dead, or ``None`` without a watchdog."""
        return self._watchdog_usec / 1e6 if self._watchdog_usec else None

    def notify(self, **state: str | int) -> None:
        """Tell systemd, for example ``notify(READY=1, STATUS="...")``. One datagram, never blocking."""
        if not self._address:
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        message = "\n".join(f"{key}={value}" for key, value in state.items())
        kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        try:
            with socket.socket(socket.AF_UNIX, kind) as channel:
                channel.sendto(message.encode(), address)
        except OSError as error:
            log.warning("service.notify.failed", error=str(error))


async def feed_watchdog(manager: ServiceManager, is_alive: Callable[[], bool]) -> None:
    """Feed systemd's watchdog as long as ``is_alive`` says so; without a watchdog, wait for cancellation."""
    period = manager.watchdog_period
    if period is None:
        await asyncio.Event().wait()
        return
    while True:
        if is_alive():
            manager.notify(WATCHDOG=1)
        else:
            log.error("service.watchdog.starved")
        await asyncio.sleep(period / WATCHDOG_FRACTION)


class Supervisor:
    """The named tasks of a daemon. One that ends unasked, by an error or not, stops the daemon.

    Tasks are stopped in the reverse of their order of start, so that what came up last, and leans on the rest,
    goes first; each gets ``stop_timeout`` seconds. ``on_stop`` is called as the stop begins, whatever brought it about.
    """

    def __init__(self, *, stop_timeout: float, on_stop: Callable[[], None] | None = None) -> None:
        self._stop_timeout = stop_timeout
        self._on_stop = on_stop
        self._tasks: list[asyncio.Task[None]] = []
        self._stop = asyncio.Event()
        self._failure: BaseException | None = None

    def start(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """Run ``work`` until the daemon stops."""
        task = asyncio.create_task(work, name=name)
        task.add_done_callback(self._on_done)
        self._tasks.append(task)

    def stop(self) -> None:
        """Ask the daemon to stop; safe from a signal handler on the loop."""
        self._stop.set()

    @property
    def is_stopping(self) -> bool:
        return self._stop.is_set()

    def is_running(self, name: str) -> bool:
        """Whether the task ``name`` was started and has not ended."""
        return any(task.get_name() == name and not task.done() for task in self._tasks)

    def stop_on_signals(self) -> None:
        """Make SIGTERM and SIGINT stop the daemon."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)

    async def wait(self) -> None:
        """Wait until the daemon is asked to stop, or a task ended unasked; then end every task.

        Raises the error of the task that failed first.
        """
        await self._stop.wait()
        if self._on_stop is not None:
            self._on_stop()
        started = time.monotonic()
        for task in reversed(self._tasks):
            task.cancel()
            done, _ = await asyncio.wait({task}, timeout=self._stop_timeout)
            if not done:
                log.error("service.task.stuck", task=task.get_name(), seconds=self._stop_timeout)
        log.info("service.stopped", seconds=round(time.monotonic() - started, 3))
        if self._failure is not None:
            raise self._failure

    def _on_done(self, task: asyncio.Task[None]) -> None:
        # A task may end cancelled though nobody here cancelled it: libraries do that to those who wait on them.
        error = None if task.cancelled() else task.exception()
        if self._stop.is_set() and error is None:
            return
        if self._failure is None:
            self._failure = error or RuntimeError(f"task {task.get_name()} ended unasked")
        log.error("service.task.ended", task=task.get_name(), exc_info=error)
        self._stop.set()
