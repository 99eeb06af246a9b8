"""The virtual environment of the OpenStack services: made once for a set of pinned versions, shared by labs."""

import asyncio
import contextlib
import fcntl
import hashlib
import os
import shutil
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from sev_agent.lab.service import LabError, Say
from sev_agent.subprocesses import ProgramError, ProgramFailed, run_bounded

REQUIREMENTS = Path(__file__).with_name("requirements.txt")

_COMPLETE = "complete"
_KEPT_LINES = 15
_INSTALL_TIMEOUT = 900.0
_MAX_OUTPUT = 16 * 1024 * 1024
_LOCK_INTERVAL = 0.2


def key(requirements: bytes, python: str) -> str:
    """The name of the environment for ``requirements`` under ``python`` (its version and platform)."""
    return hashlib.sha256(python.encode() + b"\0" + requirements).hexdigest()[:16]


def location(cache: Path) -> Path:
    """Where below ``cache`` the environment for this Python is, or will be."""
    python = f"{sys.version_info.major}.{sys.version_info.minor}-{sys.platform}-{os.uname().machine}"
    return cache / f"openstack-{key(REQUIREMENTS.read_bytes(), python)}"


async def provide(cache: Path, say: Say) -> Path:
    """The environment's directory, made below ``cache`` if it is not there.

    Raises ``LabError`` with the installer's last lines. One that was interrupted is made anew; a second lab that
    wants the same one waits.
    """
    home = location(cache)
    if (home / _COMPLETE).exists():
        say("was there")
        return home
    async with _locked(cache / f"{home.name}.lock", say) as lock:
        if not (home / _COMPLETE).exists():
            say("creating")
            await asyncio.to_thread(shutil.rmtree, home, ignore_errors=True)
            await _run(sys.executable, "-m", "venv", str(home), say=say, lock=lock)
            pip = (str(home / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "--no-input")
            # The file names the whole set, so there is nothing to resolve.
            options = ("--no-deps", "--progress-bar", "off", "--requirement", str(REQUIREMENTS))
            await _run(*pip, "install", *options, say=say, lock=lock)
            (home / _COMPLETE).touch()
        say("installed")
    return home


@contextlib.asynccontextmanager
async def _locked(path: Path, say: Say) -> AsyncIterator[int]:
    """Hold the lock ``path``; the value is its descriptor."""
    with path.open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                say("waiting for another lab that makes it")
                await asyncio.sleep(_LOCK_INTERVAL)
        yield file.fileno()


async def _run(*command: str, say: Say, lock: int) -> None:
    try:
        await run_bounded(
            command,
            timeout=_INSTALL_TIMEOUT,
            max_output=_MAX_OUTPUT,
            on_line=say,
            # An installer that outlives a killed 'up' keeps the lock: else the next would work in the same place.
            pass_fds=(lock,),
        )
    except ProgramFailed as error:
        said = [*error.stdout.decode(errors="replace").splitlines(), *error.stderr.splitlines()][-_KEPT_LINES:]
        text = "".join(f"\n  {line}" for line in said)
        raise LabError(f"'{' '.join(command)}' failed with status {error.returncode}:{text}\n") from None
    except ProgramError as error:
        raise LabError(error.message, remedy=error.remedy) from None
