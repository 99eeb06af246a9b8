"""The firmware descriptors of this host, read from disk."""

from collections.abc import Iterable
from pathlib import Path

import structlog

from sev_agent.domain.firmware import DescriptorFile

log = structlog.get_logger(__name__)

MAX_BYTES = 1024 * 1024
"""A descriptor has about a thousand bytes; what is larger than this is none."""


def descriptors(dirs: Iterable[Path], *, root: Path = Path("/")) -> tuple[DescriptorFile, ...]:
    """Every ``*.json`` in ``dirs``, in their order: the most specific directory first, as in the configuration.

    They are read below ``root``, and told as they are called there. Blocks on the disk. A directory that is not there
    has no descriptors. A file that cannot be read is logged and left out, so that one of its name in a later directory
    counts.
    """
    return tuple(file for directory in dirs for file in _directory(directory, root))


def below(root: Path, path: Path) -> Path:
    """Where ``path``, which is absolute, lies on a host whose files are below ``root``."""
    return root / path.relative_to(path.anchor)


def _directory(directory: Path, root: Path) -> Iterable[DescriptorFile]:
    for path in sorted(below(root, directory).glob("*.json")):
        try:
            with path.open("rb") as file:
                content = file.read(MAX_BYTES)
        except OSError as error:
            log.warning("firmware.descriptor.unreadable", path=str(path), error=str(error))
            continue
        yield DescriptorFile(directory / path.name, content.decode(errors="replace"))
