"""One daemon for one state directory: a lock that the kernel keeps for as long as the process lives."""

import contextlib
import fcntl
import os
from pathlib import Path

from sev_agent.durable import make_directory
from sev_agent.errors import HostTaken

_MAX_HOLDER = 300


class StateLock:
    """The lock on ``<state_dir>/lock``; the file says whose it is, and stays when the lock is gone."""

    def __init__(self, state_dir: Path, host: str) -> None:
        self._path = state_dir / "lock"
        self._host = host

    def take(self) -> None:
        """Take the lock, making the directory where it is missing; nothing but the process's end gives it back.

        Blocks on the disk. Raises ``HostTaken`` that names the holder, and ``OSError`` where the directory cannot
        be used.
        """
        make_directory(self._path.parent)
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, _MAX_HOLDER, 0).decode(errors="replace").strip()
            os.close(descriptor)
            raise self._refusal(holder) from None
        except OSError:
            os.close(descriptor)
            raise
        # The name is for people: a full disk, which does not take it, must not keep the daemon from starting.
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"host {self._host}, process {os.getpid()}\n".encode(), 0)

    def _refusal(self, holder: str) -> HostTaken:
        return HostTaken(
            f"another daemon uses {self._path.parent}: {holder or 'it has not said which'}",
            field="host.state_dir",
            remedy="stop that one, or give each daemon its own host.state_dir and host.name",
        )
