"""What stood among the records of a host and is none of them, kept for a person to look at."""

import contextlib
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import structlog

from sev_agent.compute.instance_files import InstanceFiles
from sev_agent.compute.qcow2 import BadHeader, read_header

log = structlog.stdlib.get_logger(__name__)

NAME: Final = ".set-aside"
"""Below the records' own directory: from another file system nothing could be moved here."""

MAX_RECORD_BYTES: Final = 4 * 1024 * 1024


class Shelf:
    """What was set aside from the directory ``records``, and what had to stay there because it cannot be moved.

    ``left_out`` are the names of the latter. Its methods block on the disk.
    """

    def __init__(self, records: Path) -> None:
        self._directory = records / NAME
        self._left_out: dict[str, Path] = {}

    @property
    def left_out(self) -> frozenset[str]:
        return frozenset(self._left_out)

    def take(self, path: Path, reason: Exception) -> None:
        """Set ``path`` aside, whole; where that fails it stays as it is. Never raises ``OSError``."""
        target = self._directory / f"{path.name}.{datetime.now(UTC):%Y%m%dT%H%M%S.%f}"
        try:
            self._directory.mkdir(mode=0o700, exist_ok=True)
            path.rename(target)
        except OSError as error:
            self._left_out[path.name] = path
            log.error("record.left_out", path=str(path), reason=str(reason), error=str(error))  # noqa: TRY400 - no fault of ours
        else:
            log.error("record.set_aside", path=str(path), kept_as=str(target), reason=str(reason))

    def bases(self) -> frozenset[Path]:
        """The images below the disks of what is not read as a record, as far as they can be told."""
        found: set[Path] = set()
        aside: list[Path] = []
        with contextlib.suppress(OSError):
            aside = list(self._directory.iterdir())
        for directory in (*aside, *self._left_out.values()):
            files = InstanceFiles(directory)
            # A disk that libvirt gave to QEMU's user is closed to us: then what the record says has to do.
            with contextlib.suppress(OSError, BadHeader):
                if backing := read_header(files.disk).backing_file:
                    found.add(Path(os.fsdecode(backing)))
            with contextlib.suppress(OSError, ValueError, TypeError, KeyError, RecursionError):
                found.add(Path(json.loads(_beginning(files.record))["base_image"]))
        return frozenset(found)


def _beginning(path: Path) -> bytes:
    """As much as a record of ours may have: what stands in its place may have any size."""
    with path.open("rb") as file:
        return file.read(MAX_RECORD_BYTES)
