"""How much memory this host could still give away."""

import re
from pathlib import Path
from typing import Final

MEMINFO: Final = Path("/proc/meminfo")

_AVAILABLE: Final = re.compile(r"^MemAvailable:\s+(\d{1,15}) kB$", re.MULTILINE)
_MAX_BYTES: Final = 64 * 1024


def available_mb(meminfo: Path = MEMINFO) -> int | None:
    """The kernel's own estimate, MiB, of what can be taken without swapping; ``None`` where it has none.

    Blocks shortly. Source: Linux, Documentation/filesystems/proc.rst, "meminfo".
    """
    try:
        with meminfo.open("rb") as file:
            found = _AVAILABLE.search(file.read(_MAX_BYTES).decode(errors="replace"))
    except OSError:
        return None
    return int(found[1]) // 1024 if found else None
