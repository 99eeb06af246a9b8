# ruff: noqa: ASYNC240 - a test may block its own loop for a moment
import asyncio
import os
import time
from pathlib import Path

import pytest

from sev_agent.subprocesses import (
    ProgramError,
    ProgramFailed,
    ProgramMissing,
    ProgramOutputTooLarge,
    ProgramTimeout,
    run_bounded,
)


async def _ended(pid: int) -> bool:
    # A pidfd is readable from the process's end on, reaped or not: in a container nobody may reap a killed orphan.
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(descriptor, ended.set)
    try:
        async with asyncio.timeout(5):
            return await ended.wait()
    except TimeoutError:
        return False
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


async def test_returns_output_and_error_output() -> None:
    """A program that succeeds hands back both of its outputs."""
    completed = await run_bounded(["sh", "-c", "echo out; echo err >&2"], timeout=10)
    assert (completed.stdout, completed.stderr) == (b"out\n", "err")


async def test_feeds_input() -> None:
    """The input arrives whole, and then ends."""
    content = os.urandom(300_000)
    assert (await run_bounded(["cat"], timeout=10, stdin=content)).stdout == content


async def test_input_that_is_not_read_is_no_error() -> None:
    """A program may end without reading its input."""
    assert (await run_bounded(["true"], timeout=10, stdin=b"x" * 1_000_000)).stdout == b""


async def test_arguments_never_meet_a_shell() -> None:
    """Shell characters in an argument stay characters."""
    assert (await run_bounded(["echo", "$(id); `id` > /x"], timeout=10)).stdout == b"$(id); `id` > /x\n"


async def test_failure_says_why() -> None:
    """A failed program's error has its exit status and the end of what it said."""
    with pytest.raises(ProgramFailed, match="sh failed with exit status 3: no luck") as caught:
        await run_bounded(["sh", "-c", "echo first >&2; echo no luck >&2; exit 3"], timeout=10)
    assert (caught.value.returncode, caught.value.stderr) == (3, "first\nno luck")


async def test_death_by_signal_is_named() -> None:
    """A killed program's error names the signal."""
    with pytest.raises(ProgramFailed, match="was killed by SIGTERM"):
        await run_bounded(["sh", "-c", "kill -TERM $$"], timeout=10)


async def test_error_output_is_bounded() -> None:
    """Of an endless error output only the tail is kept."""
    with pytest.raises(ProgramFailed) as caught:
        await run_bounded(["sh", "-c", "head -c 1000000 /dev/zero | tr '\\0' x >&2; echo end >&2; exit 1"], timeout=10)
    assert len(caught.value.stderr) <= 4096
    assert caught.value.stderr.endswith("end")


@pytest.mark.parametrize("cpu_seconds", [None, 5])
async def test_missing_program(cpu_seconds: int | None) -> None:
    """A program that is not installed is reported as such, with and without limits."""
    with pytest.raises(ProgramMissing, match="install the package"):
        await run_bounded(["no-such-program"], timeout=10, cpu_seconds=cpu_seconds)


async def test_timeout_kills_the_whole_group(tmp_path: Path) -> None:
    """At the time limit, the program's children die with it."""
    pid_file = tmp_path / "pid"
    started = time.monotonic()
    with pytest.raises(ProgramTimeout):
        await run_bounded(["sh", "-c", f"sleep 60 & echo $! > {pid_file}; wait"], timeout=0.5)
    assert time.monotonic() - started < 5
    assert await _ended(int(pid_file.read_text()))


async def test_a_child_that_holds_the_output_is_ended_at_the_timeout(tmp_path: Path) -> None:
    """A program that is gone, but left a child with its output, does not hang the caller."""
    pid_file = tmp_path / "pid"
    with pytest.raises(ProgramTimeout):
        await run_bounded(["sh", "-c", f"sleep 60 & echo $! > {pid_file}"], timeout=0.5)
    assert await _ended(int(pid_file.read_text()))


async def test_cancellation_kills_and_reaps(tmp_path: Path) -> None:
    """A cancelled caller leaves no process, and no zombie."""
    pid_file = tmp_path / "pid"
    os.mkfifo(pid_file)
    task = asyncio.create_task(run_bounded(["sh", "-c", f"echo $$ > {pid_file}; sleep 60; true"], timeout=60))
    pid = int(await asyncio.to_thread(pid_file.read_text))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not Path(f"/proc/{pid}").exists()


async def test_endless_output_is_cut() -> None:
    """A program that writes more than it may is killed."""
    with pytest.raises(ProgramOutputTooLarge):
        await run_bounded(["yes"], timeout=30, max_output=100_000)


async def test_lines_as_they_come(tmp_path: Path) -> None:
    """Each line of the output is told once it is whole, while the program runs, in the directory that is given."""
    told: list[str] = []
    script = "pwd; printf 'half'; read -r _; echo ' line'; printf 'no line'"

    ended = await run_bounded(["sh", "-c", script], timeout=30, stdin=b"\n", cwd=tmp_path, on_line=told.append)

    assert told == [str(tmp_path), "half line"]
    assert ended.stdout.endswith(b"no line")


async def test_descriptor_that_is_passed_on() -> None:
    """A program inherits the descriptors that are named, and no others."""
    mine, other = os.pipe()
    try:
        ended = await run_bounded(["ls", "/proc/self/fd"], timeout=30, pass_fds=(other,))
    finally:
        os.close(mine)
        os.close(other)

    open_there = set(ended.stdout.decode().split())
    assert str(other) in open_there
    assert str(mine) not in open_there


async def test_memory_limit() -> None:
    """A program that wants more address space than it may fails."""
    with pytest.raises(ProgramFailed, match=r"(?i)memory"):
        await run_bounded(
            ["dd", "if=/dev/zero", "of=/dev/null", "bs=200M", "count=1"], timeout=30, memory_bytes=64 * 1024**2
        )


async def test_cpu_limit() -> None:
    """A program that computes for longer than it may is ended, well before the time limit."""
    with pytest.raises(ProgramFailed, match=r"was killed by SIG(XCPU|KILL)"):
        await run_bounded(["sh", "-c", "while :; do :; done"], timeout=30, cpu_seconds=1)


async def test_errors_share_a_root() -> None:
    """One except clause catches whatever becomes of a program."""
    assert {error.code for error in ProgramError.__subclasses__()} == {
        "program.missing",
        "program.failed",
        "program.timeout",
        "program.output",
    }
