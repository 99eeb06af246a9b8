"""Programs run within bounds: on time, memory, CPU and output; never through a shell, never left behind."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, cast

import structlog

from sev_agent.errors import SevAgentError

log = structlog.get_logger(__name__)

_STDERR = 2
_STDERR_TAIL = 4096
_REAP_TIMEOUT = 5.0


@dataclass(frozen=True, slots=True)
class Completed:
    """A program that ended with success: all of its output, and the last 4 KiB of its error output."""

    stdout: bytes
    stderr: str


class ProgramError(SevAgentError):
    """A program did not do its work. ``program`` is its name, ``stderr`` the tail of its error output."""

    code: ClassVar[str] = "program"

    def __init__(self, message: str, *, program: str, stderr: str = "", remedy: str | None = None) -> None:
        super().__init__(message, remedy=remedy)
        self.program = program
        self.stderr = stderr


class ProgramMissing(ProgramError):
    """A program is not installed, or may not be executed."""

    code = "program.missing"


class ProgramFailed(ProgramError):
    """A program ended with a failure. ``returncode`` is negative for a signal, as in ``subprocess``."""

    code = "program.failed"

    def __init__(self, message: str, *, program: str, returncode: int, stdout: bytes, stderr: str) -> None:
        super().__init__(message, program=program, stderr=stderr)
        self.returncode = returncode
        self.stdout = stdout


class ProgramTimeout(ProgramError):
    """A program took longer than it may; it was killed."""

    code = "program.timeout"
    retryable = True


class ProgramOutputTooLarge(ProgramError):
    """A program wrote more than it may; it was killed."""

    code = "program.output"


async def run_bounded(
    argv: Sequence[str],
    *,
    timeout: float,  # noqa: ASYNC109 - the whole group is killed and reaped here, which the caller's own limit could not do
    memory_bytes: int | None = None,
    cpu_seconds: int | None = None,
    stdin: bytes = b"",
    max_output: int = 1024 * 1024,
    environment: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    pass_fds: Sequence[int] = (),
    on_line: Callable[[str], None] | None = None,
) -> Completed:
    """Run ``argv`` to its end, with ``stdin`` as its input, and return what it wrote.

    ``timeout`` is seconds; ``memory_bytes`` bounds the address space (RLIMIT_AS), ``cpu_seconds`` the CPU time
    (RLIMIT_CPU), ``max_output`` the bytes of standard output. ``environment`` is added to the process's own. It runs in
    ``cwd``, inherits ``pass_fds``, and ``on_line`` is told each line of its standard output as it comes. On a passed
    limit, and on cancellation, the program's whole process group is killed and reaped before this returns.

    Raises ``ProgramMissing``, ``ProgramFailed``, ``ProgramTimeout``, ``ProgramOutputTooLarge``.
    """
    program = argv[0]
    loop = asyncio.get_running_loop()
    # The limits are set by prlimit, not by a preexec_fn: that would make CPython fork instead of vfork, which costs
    # milliseconds in a daemon with many pages, and run Python in the child of a threaded process.
    spawning = asyncio.ensure_future(
        loop.subprocess_exec(
            lambda: _Watch(max_output, on_line),
            *_limits(memory_bytes, cpu_seconds),
            *argv,
            stdin=asyncio.subprocess.PIPE if stdin else asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "LC_ALL": "C.UTF-8", **(environment or {})},
            cwd=cwd,
            pass_fds=tuple(pass_fds),
            start_new_session=True,
        )
    )
    try:
        transport, watch = await asyncio.shield(spawning)
    except asyncio.CancelledError:
        # Cancelled by itself, asyncio would kill the leader alone, and then wait for the children that hold the pipes.
        await asyncio.wait({spawning})
        if spawning.exception() is None:
            await _end(*spawning.result(), program)
        raise
    except OSError as error:
        raise _missing(program, error.strerror or str(error)) from error
    try:
        async with asyncio.timeout(timeout):
            if stdin:
                pipe = cast("asyncio.WriteTransport", transport.get_pipe_transport(0))
                pipe.write(stdin)
                pipe.write_eof()
            await watch.ended.wait()
    except TimeoutError as error:
        raise ProgramTimeout(
            f"{program} did not end within {timeout:g} s and was killed", program=program, stderr=watch.stderr_tail()
        ) from error
    finally:
        await _end(transport, watch, program)
    return _outcome(program, transport.get_returncode(), watch, limited=bool(memory_bytes or cpu_seconds))


class _Watch(asyncio.SubprocessProtocol):
    """Collects the output. ``ended``: nothing is left to wait for; ``closed``: exited, reaped, pipes at their end."""

    def __init__(self, max_output: int, on_line: Callable[[str], None] | None) -> None:
        self.ended = asyncio.Event()
        self.closed = asyncio.Event()
        self.stdout = bytearray()
        self.overflow = False
        self._max_output = max_output
        self._on_line = on_line
        self._line_from = 0
        self._stderr = bytearray()

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        if fd == _STDERR:
            self._stderr += data
            del self._stderr[:-_STDERR_TAIL]
        elif len(self.stdout) + len(data) <= self._max_output:
            self.stdout += data
            self._tell_lines()
        else:
            self.overflow = True
            self.ended.set()

    def _tell_lines(self) -> None:
        while self._on_line is not None and (end := self.stdout.find(b"\n", self._line_from)) >= 0:
            self._on_line(self.stdout[self._line_from : end].decode(errors="replace").strip())
            self._line_from = end + 1

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        self.closed.set()
        self.ended.set()

    def stderr_tail(self) -> str:
        return self._stderr.decode(errors="replace").strip()


def _limits(memory_bytes: int | None, cpu_seconds: int | None) -> list[str]:
    if memory_bytes is None and cpu_seconds is None:
        return []
    memory = [f"--as={memory_bytes}"] if memory_bytes is not None else []
    cpu = [f"--cpu={cpu_seconds}"] if cpu_seconds is not None else []
    return ["prlimit", "--core=0", *memory, *cpu, "--"]


async def _end(transport: asyncio.SubprocessTransport, watch: _Watch, program: str) -> None:
    if not watch.closed.is_set():
        # The leader may be gone while its children hold the pipes: the group is killed in either case.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(transport.get_pid(), signal.SIGKILL)
        try:
            async with asyncio.timeout(_REAP_TIMEOUT):
                await watch.closed.wait()
        except TimeoutError:
            # Stuck in the kernel (a dead disk), or a descendant left the group: asyncio reaps the leader when it can.
            log.warning("program.unreaped", program=program, pid=transport.get_pid())
    transport.close()


def _outcome(program: str, returncode: int | None, watch: _Watch, *, limited: bool) -> Completed:
    stderr = watch.stderr_tail()
    if watch.overflow:
        raise ProgramOutputTooLarge(f"{program} wrote more output than expected", program=program, stderr=stderr)
    if limited and returncode in {126, 127} and stderr.startswith("prlimit:"):
        raise _missing(program, stderr)
    if returncode is None or returncode != 0:
        code = -signal.SIGKILL if returncode is None else returncode
        how = f"was killed by {_signal_name(-code)}" if code < 0 else f"failed with exit status {code}"
        said = f": {stderr.splitlines()[-1]}" if stderr else ""
        raise ProgramFailed(
            f"{program} {how}{said}", program=program, returncode=code, stdout=bytes(watch.stdout), stderr=stderr
        )
    return Completed(bytes(watch.stdout), stderr)


def _missing(program: str, why: str) -> ProgramMissing:
    return ProgramMissing(
        f"{program} cannot be executed: {why}",
        program=program,
        remedy=f"install the package that holds {program}, or correct PATH of this service",
    )


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
