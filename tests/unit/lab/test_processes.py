import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sev_agent.lab import processes
from sev_agent.lab.service import LEADER_VARIABLE, mark

STUBBORN = "trap '' TERM; echo ready; while :; do sleep 0.05; done"


LEAD = ("sh", "-c", f'export {LEADER_VARIABLE}=$$; exec "$@"', "sh")
"""How the lab starts a process: it notes its own pid."""


class Started:
    """Starts marked processes, and ends them after the test."""

    def __init__(self) -> None:
        self.all: list[subprocess.Popen[str]] = []

    def __call__(self, lab: Path, service: str, *command: str) -> int:
        process = subprocess.Popen(
            [*LEAD, *command], env={**os.environ, **mark(lab, service)}, stdout=subprocess.PIPE, text=True
        )
        self.all.append(process)
        # What stands in /proc changes when the shell becomes the command.
        deadline = time.monotonic() + 10
        while f"{LEADER_VARIABLE}={process.pid}" not in Path(f"/proc/{process.pid}/environ").read_text().split("\0"):
            assert time.monotonic() < deadline
            time.sleep(0.005)
        return process.pid

    def end(self) -> None:
        for process in self.all:
            with process:
                process.kill()


@pytest.fixture
def start() -> Iterator[Started]:
    started = Started()
    yield started
    started.end()


def test_a_process_is_found_by_its_lab_and_service(start: Started, tmp_path: Path) -> None:
    """The mark in its environment says whose it is, and /proc since when; the one that the lab started is known."""
    pid = start(tmp_path, "glance", "sleep", "60")
    (found,) = processes.find(tmp_path)
    assert (found.pid, found.service, found.leader) == (pid, "glance", True)
    assert abs(found.started - time.time()) < 10
    assert processes.find(tmp_path, "keystone") == []


def test_another_labs_processes_are_not_seen(start: Started, tmp_path: Path) -> None:
    """A directory whose path merely begins with the same characters is another lab."""
    start(tmp_path / "lab2", "glance", "sleep", "60")
    assert processes.find(tmp_path / "lab") == []


def test_a_symbolic_link_to_the_directory_is_the_same_lab(start: Started, tmp_path: Path) -> None:
    """The mark holds the real path."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    pid = start(tmp_path / "link", "glance", "sleep", "60")
    assert [process.pid for process in processes.find(tmp_path / "real")] == [pid]


def test_children_carry_the_mark_but_are_not_leaders(start: Started, tmp_path: Path) -> None:
    """A process that a service starts belongs to it, even one that leads a session of its own."""
    pid = start(tmp_path, "rabbitmq", "sh", "-c", "setsid sh -c 'echo ready; kill -STOP $$' & wait")
    stream = start.all[0].stdout
    assert stream is not None
    stream.readline()
    found = processes.find(tmp_path)
    assert len(found) == 2
    assert [process.pid for process in found if process.leader] == [pid]
    os.kill(pid, signal.SIGKILL)
    start.all[0].wait()
    (orphan,) = processes.find(tmp_path)
    assert not orphan.leader
    os.kill(orphan.pid, signal.SIGKILL)


async def test_end_asks_first(start: Started, tmp_path: Path) -> None:
    """SIGTERM is enough for a process that obeys it."""
    start(tmp_path, "glance", "sleep", "60")
    (found,) = processes.find(tmp_path)
    assert await processes.end(found, tmp_path, patience=10)
    assert start.all[0].poll() in {-signal.SIGTERM, 0}
    assert processes.find(tmp_path) == []


async def test_end_forces_after_its_patience(start: Started, tmp_path: Path) -> None:
    """A process that ignores SIGTERM is killed."""
    start(tmp_path, "glance", "sh", "-c", STUBBORN)
    stream = start.all[0].stdout
    assert stream is not None
    stream.readline()
    leader = next(process for process in processes.find(tmp_path) if process.leader)
    assert await processes.end(leader, tmp_path, patience=0.2)
    assert leader.pid not in {process.pid for process in processes.find(tmp_path)}


async def test_a_reused_pid_is_not_ended(start: Started, tmp_path: Path) -> None:
    """A process of another lab that has taken the pid meanwhile lives on."""
    start(tmp_path / "mine", "glance", "sleep", "60")
    (found,) = processes.find(tmp_path / "mine")
    assert not await processes.end(found, tmp_path / "other", patience=0.2)
    assert start.all[0].poll() is None


async def test_wait_exit_is_bounded(start: Started, tmp_path: Path) -> None:
    """It says no after its time, and yes as soon as the process is gone."""
    start(tmp_path, "glance", "sleep", "60")
    (found,) = processes.find(tmp_path)
    assert not await processes.wait_exit(found, tmp_path, 0.05)
    os.kill(found.pid, signal.SIGKILL)
    assert await processes.wait_exit(found, tmp_path, 10)
