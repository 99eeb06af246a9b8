"""The running kernel: its version, and what it was built with."""

import re
from dataclasses import dataclass
from typing import Final

from sev_agent.hypervisor.host_files import HostFiles

RELEASE: Final = "proc/sys/kernel/osrelease"


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelConfig:
    """The options of a kernel's build: value by name; an option that is ``not set`` has ``n``."""

    source: str
    options: dict[str, str]

    def value(self, name: str) -> str | None:
        """``y``, ``m``, ``n``; None for an option that this kernel does not know."""
        return self.options.get(name)


def release(files: HostFiles) -> str:
    """Such as ``6.12.41+deb13-amd64``. Raises ``OSError``."""
    return files.text(RELEASE).strip()


def version(files: HostFiles) -> tuple[int, int] | None:
    """Major and minor number; None where the release has none. Raises ``OSError``."""
    found = re.match(r"(\d{1,4})\.(\d{1,4})", release(files))
    return (int(found[1]), int(found[2])) if found else None


def config(files: HostFiles) -> KernelConfig | None:
    """The running kernel's own options, or those that its package left on disk; None where there are neither.

    Raises ``OSError`` where what is there cannot be read.
    """
    running = "proc/config.gz"
    if files.exists(running):
        return KernelConfig(source=files.where(running), options=_options(files.unpacked(running)))
    name = release(files)
    if "/" in name:
        return None
    for path in (f"boot/config-{name}", f"lib/modules/{name}/config", f"usr/lib/modules/{name}/config"):
        if (text := files.text_or_none(path)) is not None:
            return KernelConfig(source=files.where(path), options=_options(text))
    return None


def _options(text: str) -> dict[str, str]:
    options = {}
    for line in text.splitlines():
        if found := re.match(r"(CONFIG_\w+)=(.*)", line):
            options[found[1]] = found[2].strip('"')
        elif found := re.match(r"# (CONFIG_\w+) is not set", line):
            options[found[1]] = "n"
    return options
