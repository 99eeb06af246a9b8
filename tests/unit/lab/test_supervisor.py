import os
import signal
import socket
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from sev_agent.lab import processes
from sev_agent.lab.processes import MarkedProcess
from sev_agent.lab.progress import Silent
from sev_agent.lab.service import Service
from sev_agent.lab.supervisor import ServiceError, State, Supervisor


@pytest.fixture
async def supervisor(tmp_path: Path) -> AsyncIterator[Supervisor]:
    supervisor = Supervisor(tmp_path, Silent())
    yield supervisor
    await supervisor.end_marked()


def service(directory: Path, script: str = ": > up; exec sleep 60", *, timeout: float = 10) -> Service:
    async def ready() -> bool:
        return (directory / "up").exists()

    return Service(name="service", command=("sh", "-c", script), ready=ready, ready_timeout=timeout, stop_timeout=2)


def pids(directory: Path) -> list[int]:
    return [process.pid for process in processes.find(directory)]


def open_in(pid: int) -> set[str]:
    return {path.name for path in Path(f"/proc/{pid}/fd").iterdir()}


async def test_a_service_runs_in_a_session_of_its_own_and_is_ready(supervisor: Supervisor, tmp_path: Path) -> None:
    """It leads a session, so it outlives the command that started it, and its status says all about it."""
    await supervisor.start(service(tmp_path))
    status = await supervisor.status(service(tmp_path))
    assert (status.state, [status.pid]) == (State.READY, pids(tmp_path))
    assert status.pid == os.getsid(status.pid or 0)


async def test_a_ready_service_is_kept(supervisor: Supervisor, tmp_path: Path) -> None:
    """Starting it again changes nothing."""
    await supervisor.start(service(tmp_path))
    before = pids(tmp_path)
    await supervisor.start(service(tmp_path))
    assert pids(tmp_path) == before


async def test_a_busy_service_is_kept(supervisor: Supervisor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that has run for long and does not answer at once is busy: those who use it would miss it."""
    await supervisor.start(service(tmp_path))
    before = pids(tmp_path)
    answers = iter([False, True])

    async def ready() -> bool:
        return next(answers)

    leader = await supervisor._leader("service")
    assert leader is not None

    async def of_long_ago(_: str) -> MarkedProcess:
        return replace(leader, started=0.0)

    monkeypatch.setattr(supervisor, "_leader", of_long_ago)
    await supervisor.start(replace(service(tmp_path, timeout=60), ready=ready))
    assert pids(tmp_path) == before


async def test_a_service_gets_nothing_that_was_open(supervisor: Supervisor, tmp_path: Path) -> None:
    """A lock or a pipe of whoever called the lab is not held for as long as the lab runs."""
    with (tmp_path / "lock").open("w") as lock:
        os.set_inheritable(lock.fileno(), True)  # noqa: FBT003 - it takes no name
        await supervisor.start(service(tmp_path))
        (pid,) = pids(tmp_path)
        assert open_in(pid) == {"0", "1", "2"}


async def test_a_killed_service_is_started_anew(supervisor: Supervisor, tmp_path: Path) -> None:
    """What it left behind is ended first, so that it cannot hold a port or a file."""
    await supervisor.start(service(tmp_path, "sleep 60 & : > up; wait"))
    before = await supervisor.marked()
    assert len(before) == 2
    os.kill(next(process.pid for process in before if process.leader), signal.SIGKILL)
    (tmp_path / "up").unlink()
    await supervisor.start(service(tmp_path))
    (after,) = await supervisor.marked()
    assert after.pid not in {process.pid for process in before}


async def test_a_service_that_ends_shows_its_last_lines(supervisor: Supervisor, tmp_path: Path) -> None:
    """The error has the exit status, what the service said itself, and where the rest stands."""
    with pytest.raises(ServiceError, match=r"(?s)status 7.*out of cheese.*service\.log"):
        await supervisor.start(service(tmp_path, "echo out of cheese >&2; exit 7"))


async def test_a_service_that_is_never_ready_is_an_error(supervisor: Supervisor, tmp_path: Path) -> None:
    """The wait is bounded; the service is left as it is, for its next start to replace."""
    with pytest.raises(ServiceError, match=r"(?s)not ready after 0.3 s.*thinking"):
        await supervisor.start(service(tmp_path, "echo thinking; exec sleep 60", timeout=0.3))
    (stuck,) = await supervisor.marked()
    await supervisor.start(service(tmp_path, timeout=1))
    assert stuck.pid not in pids(tmp_path)


async def test_a_port_that_a_stranger_has_is_named(supervisor: Supervisor, tmp_path: Path) -> None:
    """A foreign server must not be taken for the service."""
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        port = stranger.getsockname()[1]

        async def ready() -> bool:
            return True

        wanted = Service(name="service", command=("sleep", "60"), ready=ready, port=port)
        with pytest.raises(ServiceError, match=f"port {port}.*stranger"):
            await supervisor.start(wanted)
    assert pids(tmp_path) == []


async def test_stop_ends_the_service_and_the_rest(supervisor: Supervisor, tmp_path: Path) -> None:
    """Every process of the service is ended and named, its children too."""
    started = service(tmp_path, "sleep 60 & touch up; wait")
    await supervisor.start(started)
    before = pids(tmp_path)
    ended = await supervisor.stop(started)
    assert pids(tmp_path) == []
    assert before[0] in {process.pid for process in ended}


async def test_one_failure_gives_up_the_other_starts(supervisor: Supervisor, tmp_path: Path) -> None:
    """Services that start side by side do not keep the caller waiting once one has failed."""

    async def never() -> bool:
        return False

    slow = Service(name="slow", command=("sleep", "60"), ready=never, ready_timeout=60)
    with pytest.raises(ServiceError, match="service ended"):
        await supervisor.start_side_by_side([slow, service(tmp_path, "exit 1")])


async def test_a_chain_stops_at_what_fails(supervisor: Supervisor, tmp_path: Path) -> None:
    """The error names the one service that failed, and what comes after it is not started."""
    chain = [service(tmp_path, "exit 1"), service(tmp_path)]
    with pytest.raises(ServiceError, match="service ended"):
        await supervisor.start_chains([chain, []])
    assert pids(tmp_path) == []


async def test_the_environment_is_clean(
    supervisor: Supervisor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A variable of the caller's does not reach the service, such as a Python path or a proxy."""
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    await supervisor.start(service(tmp_path, "env > seen; touch up; exec sleep 60"))
    seen = (tmp_path / "seen").read_text()
    assert "PYTHONPATH" not in seen
    assert f"SEV_AGENT_LAB={tmp_path}\n" in seen
