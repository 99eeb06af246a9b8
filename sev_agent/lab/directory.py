"""The directory that a lab lives in: what may be one, who works in it, what is left of it."""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from sev_agent.lab import openrc
from sev_agent.lab.service import LabError

# sizeof(sun_path) of a UNIX socket's address; the last byte ends the string.
_SOCKET_PATH_MAX = 107
_LONGEST_SOCKET = "hosts/compute-99/run/libvirt/virtlogd-admin-sock"

# What ``down --purge`` may remove: a directory given by mistake keeps everything else.
_OWN = frozenset(
    {
        openrc.DIRECTORY,
        "log",
        "rabbitmq",
        "keystone",
        "glance",
        "placement",
        "hosts",
        "api",
        "bin",
        ".cache",
        "openrc",
        "lock",
    }
)


@contextlib.contextmanager
def alone(directory: Path) -> Iterator[None]:
    """Keep other lab commands out of ``directory``. The lock goes with the process that holds it."""
    with (directory / "lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LabError(
                f"another 'sev-agent lab' command is at work in {directory}", remedy="wait until it has ended"
            ) from None
        yield


def remove_files(directory: Path) -> None:
    """Remove what a lab makes in its ``directory``, and nothing else. Blocks on the disk."""
    for entry in directory.iterdir():
        if entry.name not in _OWN:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def check_directory(directory: Path) -> None:
    """Raises ``LabError`` for a directory in which the paths of UNIX sockets would be too long for the kernel."""
    longest = directory / _LONGEST_SOCKET
    excess = len(os.fsencode(longest)) - _SOCKET_PATH_MAX
    if excess > 0:
        raise LabError(
            f"{directory} is too long by {excess} bytes: the socket {longest} would pass the limit of 108 bytes",
            remedy="choose a shorter directory with --dir",
        )


def mounts_below(directory: Path) -> tuple[str, ...]:
    """The mount points in or below ``directory``, in every mount namespace that a process is in. Blocks on /proc."""
    tables: dict[Path, str] = {}
    for process in Path("/proc").iterdir():
        # A process may end at any moment; its namespace then has others that tell, or is gone too.
        with contextlib.suppress(OSError):
            if process.name.isdecimal() and (namespace := (process / "ns/mnt").readlink()) not in tables:
                tables[namespace] = (process / "mountinfo").read_text()
    lines = (line for table in tables.values() for line in table.splitlines())
    points = {line.split()[4].encode().decode("unicode_escape").encode("latin-1") for line in lines}
    return tuple(sorted(point for point in map(os.fsdecode, points) if Path(point).is_relative_to(directory)))
