"""Files that survive a loss of power at any instruction."""

import os
import tempfile
from pathlib import Path
from typing import Final

from sev_agent.crash_points import CrashPoint, reached

UNFINISHED: Final = ".new"
"""How the name ends of what has not got its own name yet; it begins with a dot."""


def write_durably(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """Replace ``path`` by ``content`` so that a reader, now or after a crash, sees the old or the new, whole.

    Blocks on the disk. Raises ``OSError``; then the old content stands and no temporary file is left.
    """
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=UNFINISHED)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, mode)
            file.write(content)
            file.flush()
            reached(CrashPoint.DURABLE_BEFORE_SYNC)
            os.fsync(descriptor)
        reached(CrashPoint.DURABLE_BEFORE_RENAME)
        Path(temporary).replace(path)
        reached(CrashPoint.DURABLE_AFTER_RENAME)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def make_directory(path: Path, *, mode: int = 0o777) -> None:
    """Make ``path``, with what is missing above it, so that it outlives a loss of power; one that is there is kept.

    ``mode`` is that of the last. Blocks on the disk. Raises ``OSError``.
    """
    missing = [directory for directory in (path, *path.parents) if not directory.exists()]
    path.mkdir(mode=mode, parents=True, exist_ok=True)
    for directory in missing:
        sync_directory(directory.parent)


def discard_unfinished(directory: Path) -> None:
    """Remove what a writer that was killed left in ``directory``; nobody may be writing there. Blocks on the disk.

    Raises ``OSError``.
    """
    for path in directory.glob(f".*{UNFINISHED}"):
        path.unlink(missing_ok=True)


def sync_directory(path: Path) -> None:
    """Make the creations, renames and removals in directory ``path`` durable. Blocks on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
