import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from sev_agent.service import CUT_OFF, ServiceManager, Supervisor, feed_watchdog, run

PATIENCE = 60.0
"""Seconds for what takes milliseconds on an idle machine."""

WATCHDOG_USEC = "30000"


class Listener:
    """systemd's end of the notification socket."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.bind("\0" + address[1:] if address.startswith("@") else address)

    def waiting(self) -> list[str]:
        """What has come and was not read yet."""
        found = []
        with contextlib.suppress(BlockingIOError):
            while True:
                found.append(self._socket.recv(65536).decode())
        return found

    async def next(self) -> str:
        async with asyncio.timeout(PATIENCE):
            return (await asyncio.get_running_loop().sock_recv(self._socket, 65536)).decode()

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(params=["path", "abstract"])
def listener(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Listener]:
    found = Listener(str(tmp_path / "notify") if request.param == "path" else f"@sev-agent-{uuid4()}")
    yield found
    found.close()


class TestServiceManager:
    def test_one_datagram_of_lines(self, listener: Listener) -> None:
        """A notification is one datagram, a line for each variable, by path and by abstract name alike."""
        ServiceManager({"NOTIFY_SOCKET": listener.address}).notify(READY=1, STATUS="not ready: broker: away")
        assert listener.waiting() == ["READY=1\nSTATUS=not ready: broker: away"]

    def test_silent_without_systemd(self) -> None:
        """Outside of systemd nothing is sent and nothing fails."""
        manager = ServiceManager({})
        manager.notify(READY=1)
        assert manager.watchdog_period is None

    def test_survives_systemd_going_away(self, listener: Listener) -> None:
        """A socket that nobody reads any more, or that is gone, is no error of the daemon."""
        manager = ServiceManager({"NOTIFY_SOCKET": listener.address})
        listener.close()
        manager.notify(WATCHDOG=1)

    def test_survives_a_process_without_descriptors(self, listener: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where no more files can be opened, not even a socket, the notification is lost, and the daemon lives."""

        def none_left(*_: object) -> None:
            raise OSError(24, "Too many open files")

        manager = ServiceManager({"NOTIFY_SOCKET": listener.address})
        monkeypatch.setattr(socket, "socket", none_left)
        manager.notify(WATCHDOG=1)

    def test_never_blocks(self, listener: Listener) -> None:
        """With systemd's queue full a notification is dropped, and the loop is not held up."""
        manager = ServiceManager({"NOTIFY_SOCKET": listener.address})
        started = time.monotonic()
        for _ in range(2000):
            manager.notify(WATCHDOG=1)
        assert time.monotonic() - started < PATIENCE
        assert 0 < len(listener.waiting()) < 2000

    @pytest.mark.parametrize(
        ("environment", "period"),
        [
            ({"WATCHDOG_USEC": "30000000"}, 30.0),
            ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 30.0),
            ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
            ({"WATCHDOG_USEC": ""}, None),
            ({"WATCHDOG_USEC": "0"}, None),
        ],
    )
    def test_watchdog_period(self, environment: dict[str, str], period: float | None) -> None:
        """The period is systemd's, in seconds, and only for the process that it is meant for."""
        assert ServiceManager(environment).watchdog_period == period


class TestWatchdog:
    async def test_fed_while_alive(self, listener: Listener) -> None:
        """A living daemon feeds it several times in each period."""
        manager = ServiceManager({"NOTIFY_SOCKET": listener.address, "WATCHDOG_USEC": WATCHDOG_USEC})
        task = asyncio.create_task(feed_watchdog(manager, lambda: True))
        started = time.monotonic()
        assert [await listener.next() for _ in range(4)] == ["WATCHDOG=1"] * 4
        assert time.monotonic() - started >= 0.03, "three waits of a third of the period"
        await _cancelled(task)

    async def test_starves_while_a_part_is_dead_and_recovers(self, listener: Listener) -> None:
        """It gets nothing as long as a part is not alive, and is fed again once it is."""
        alive, asked = False, asyncio.Semaphore(0)

        def is_alive() -> bool:
            asked.release()
            return alive

        manager = ServiceManager({"NOTIFY_SOCKET": listener.address, "WATCHDOG_USEC": WATCHDOG_USEC})
        task = asyncio.create_task(feed_watchdog(manager, is_alive))
        async with asyncio.timeout(PATIENCE):
            for _ in range(4):
                await asked.acquire()
        assert listener.waiting() == []
        alive = True
        assert await listener.next() == "WATCHDOG=1"
        await _cancelled(task)

    async def test_waits_without_one(self, listener: Listener) -> None:
        """Where systemd set no watchdog, the task neither feeds nor ends: its end would stop the daemon."""
        task = asyncio.create_task(feed_watchdog(ServiceManager({"NOTIFY_SOCKET": listener.address}), lambda: True))
        done, _ = await asyncio.wait({task}, timeout=0.05)
        assert not done
        assert listener.waiting() == []
        await _cancelled(task)


class Part:
    """A component that notes when it ends."""

    def __init__(self, name: str, ended: list[str]) -> None:
        self._name = name
        self._ended = ended

    async def run(self) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)  # an end that takes a turn of the loop: a later part must not overtake it
            self._ended.append(self._name)


class TestSupervisor:
    async def test_stops_in_reverse_order(self) -> None:
        """What came up last, and leans on the rest, is ended first; one is gone before the next is touched."""
        ended: list[str] = []
        supervisor = Supervisor(stop_timeout=PATIENCE)
        for name in ("hypervisor", "broker", "work"):
            supervisor.start(name, Part(name, ended).run())
        await asyncio.sleep(0)
        supervisor.stop()
        await supervisor.wait()
        assert ended == ["work", "broker", "hypervisor"]

    async def test_stop_before_the_first_turn(self) -> None:
        """A stop that comes before any part has begun ends all of them, and none is left behind unawaited."""
        supervisor = Supervisor(stop_timeout=PATIENCE)
        supervisor.start("part", Part("part", []).run())
        supervisor.stop()
        await supervisor.wait()
        assert not supervisor.is_running("part")

    async def test_tells_of_the_stop_before_anything_ends(self) -> None:
        """``on_stop`` is called once, before the first task is ended."""
        ended: list[str] = []
        supervisor = Supervisor(stop_timeout=PATIENCE, on_stop=lambda: ended.append("told"))
        supervisor.start("part", Part("part", ended).run())
        await asyncio.sleep(0)
        supervisor.stop()
        supervisor.stop()
        await supervisor.wait()
        assert ended == ["told", "part"]

    async def test_knows_what_runs(self) -> None:
        """A task runs from its start to its end, and one that was never started does not."""
        supervisor = Supervisor(stop_timeout=PATIENCE)
        assert not supervisor.is_running("part")
        supervisor.start("part", Part("part", []).run())
        assert supervisor.is_running("part")
        assert not supervisor.is_running("other")
        supervisor.stop()
        assert supervisor.is_stopping
        await supervisor.wait()
        assert not supervisor.is_running("part")

    async def test_dying_task_stops_the_daemon_with_its_error(self) -> None:
        """The error of a task ends the others in order, and is what the daemon ends with."""
        ended: list[str] = []

        async def die() -> None:
            await asyncio.sleep(0)
            raise OSError("address in use")

        supervisor = Supervisor(stop_timeout=PATIENCE)
        supervisor.start("part", Part("part", ended).run())
        supervisor.start("http", die())
        with pytest.raises(OSError, match="address in use"):
            await asyncio.wait_for(supervisor.wait(), PATIENCE)
        assert ended == ["part"]

    async def test_first_error_is_the_one_told(self) -> None:
        """Of several errors the first is raised: the others may be its consequence."""

        async def die(error: Exception) -> None:
            raise error

        supervisor = Supervisor(stop_timeout=PATIENCE)
        supervisor.start("first", die(OSError("cause")))
        supervisor.start("second", die(ValueError("consequence")))
        with pytest.raises(OSError, match="cause"):
            await asyncio.wait_for(supervisor.wait(), PATIENCE)

    async def test_task_that_returns_is_a_death(self) -> None:
        """A part that simply ends stops the daemon too, and is named."""

        async def end() -> None:
            await asyncio.sleep(0)

        supervisor = Supervisor(stop_timeout=PATIENCE)
        supervisor.start("reconciler", end())
        with pytest.raises(RuntimeError, match="task reconciler ended unasked"):
            await asyncio.wait_for(supervisor.wait(), PATIENCE)

    async def test_task_that_was_cancelled_by_others_is_a_death(self) -> None:
        """A part that a library cancelled is as dead as any other: the daemon must not go on without it."""

        async def end() -> None:
            await asyncio.sleep(0)
            raise asyncio.CancelledError

        supervisor = Supervisor(stop_timeout=PATIENCE)
        supervisor.start("broker", end())
        with pytest.raises(RuntimeError, match="task broker ended unasked"):
            await asyncio.wait_for(supervisor.wait(), PATIENCE)

    async def test_error_while_stopping_is_told(self) -> None:
        """A part that fails as it is ended does not fail silently, and the others are still ended."""
        ended: list[str] = []

        async def fail_at_the_end() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                raise OSError("disk full")

        supervisor = Supervisor(stop_timeout=PATIENCE)
        supervisor.start("part", Part("part", ended).run())
        supervisor.start("journal", fail_at_the_end())
        await asyncio.sleep(0)
        supervisor.stop()
        with pytest.raises(OSError, match="disk full"):
            await supervisor.wait()
        assert ended == ["part"]

    async def test_stuck_task_is_left_after_its_time(self) -> None:
        """A part that does not end holds the stop up for ``stop_timeout`` seconds, and the others are still ended."""
        ended: list[str] = []
        released = asyncio.Event()

        async def hold_on() -> None:
            while not released.is_set():
                with contextlib.suppress(asyncio.CancelledError):
                    await released.wait()

        supervisor = Supervisor(stop_timeout=0.05)
        supervisor.start("part", Part("part", ended).run())
        supervisor.start("stuck", hold_on())
        await asyncio.sleep(0)
        supervisor.stop()
        started = time.monotonic()
        await asyncio.wait_for(supervisor.wait(), PATIENCE)
        assert 0.05 <= time.monotonic() - started < PATIENCE / 2
        assert ended == ["part"]
        assert supervisor.is_running("stuck")
        released.set()
        await asyncio.sleep(0.01)
        assert not supervisor.is_running("stuck")


DAEMON = textwrap.dedent(
    """
    import asyncio, os
    from sev_agent.service import CUT_OFF, ServiceManager, Supervisor, feed_watchdog, run

    async def part(name):
        try:
            print("up", name, flush=True)
            await asyncio.Event().wait()
        finally:
            print("down", name, flush=True)

    async def main():
        manager = ServiceManager(os.environ)
        supervisor = Supervisor(stop_timeout=5, on_stop=lambda: manager.notify(STOPPING=1))
        supervisor.stop_on_signals()
        supervisor.start("first", part("first"))
        supervisor.start("second", part("second"))
        supervisor.start("watchdog", feed_watchdog(manager, lambda: True))
        manager.notify(READY=1)
        await supervisor.wait()

    asyncio.run(main())
    """
)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_signal_ends_a_process_with_success(number: signal.Signals, tmp_path: Path) -> None:
    """On SIGTERM and SIGINT a daemon tells systemd, ends its parts in order, and exits with 0."""
    listener = Listener(str(tmp_path / "notify"))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", DAEMON),
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "NOTIFY_SOCKET": listener.address},
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(PATIENCE):
            up = [await process.stdout.readline() for _ in range(2)]
            assert await listener.next() == "READY=1"
            process.send_signal(number)
            down, _ = await process.communicate()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    assert up == [b"up first\n", b"up second\n"]
    assert b"down second\ndown first\n" in down
    assert listener.waiting() == ["STOPPING=1"]
    assert process.returncode == 0
    listener.close()


async def _cancelled(task: "asyncio.Task[None]") -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


_HANGING = """
import asyncio, threading
from sev_agent.service import run
from sev_agent.uninterrupted import in_thread

async def main():
    asyncio.get_running_loop().run_in_executor(None, threading.Event().wait)
    stuck = asyncio.create_task(in_thread(threading.Event().wait))
    await asyncio.sleep(0)
    print("stopped")

run(main(), end_seconds=0.1)
"""


def test_end_is_cut_off() -> None:
    """A daemon whose work is over ends, whatever threads of it hang on a disk, and says which."""
    ended = subprocess.run([sys.executable, "-c", _HANGING], capture_output=True, text=True, timeout=60, check=False)

    assert ended.returncode == CUT_OFF
    assert ended.stdout.startswith("stopped")
    assert "service.cut_off" in ended.stdout
    assert "asyncio_0" in ended.stdout


def test_run() -> None:
    """What ends by itself is not cut off later, and what it fails with is the caller's."""
    done: list[str] = []

    async def work() -> None:
        done.append("work")

    async def fail() -> None:
        raise ValueError("oops")

    run(work())
    with pytest.raises(ValueError, match="oops"):
        run(fail())

    for end in [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)]:
        end.join(PATIENCE)
        assert not end.is_alive()
    assert done == ["work"]
