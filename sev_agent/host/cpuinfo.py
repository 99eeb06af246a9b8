"""The processor as the kernel tells it in ``/proc/cpuinfo``."""

from dataclasses import dataclass
from typing import Final

from sev_agent.hypervisor.host_files import HostFiles

PATH: Final = "proc/cpuinfo"
_MAX_BYTES = 16 * 1024  # the first processor's lines; there may be hundreds of processors


@dataclass(frozen=True, slots=True, kw_only=True)
class Processor:
    """The first processor. ``family`` and ``model`` are -1 where they are not told."""

    vendor: str
    family: int
    model: int
    name: str
    flags: frozenset[str]


def read(files: HostFiles) -> Processor:
    """Raises ``OSError``."""
    text = files.text(PATH, limit=_MAX_BYTES).partition("\n\n")[0]
    pairs = (line.partition(":") for line in text.splitlines())
    fields = {name.strip(): value.strip() for name, _, value in pairs}
    return Processor(
        vendor=fields.get("vendor_id", ""),
        family=_number(fields.get("cpu family")),
        model=_number(fields.get("model")),
        name=fields.get("model name", ""),
        flags=frozenset(fields.get("flags", "").split()),
    )


def _number(text: str | None) -> int:
    return int(text) if text and text.isascii() and text.isdecimal() else -1
