"""What the lab starts: long-running processes, known again by a mark in their environment."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from sev_agent.errors import SevAgentError

LAB_VARIABLE = "SEV_AGENT_LAB"
"""Environment variable that every process of a lab carries: the absolute path of the lab's directory."""

SERVICE_VARIABLE = "SEV_AGENT_LAB_SERVICE"
"""Environment variable that says which service of the lab a process belongs to."""

LEADER_VARIABLE = "SEV_AGENT_LAB_LEADER"
"""Environment variable that holds the pid of the process that the lab started; its children inherit the same."""

GUESTS = "guests"
"""The service name that QEMU's processes carry: a guest outlives a restart of its host's libvirtd."""

Say: TypeAlias = Callable[[str], None]
"""Takes a short line about what is being done now."""


class LabError(SevAgentError):
    """The lab cannot do what was asked."""

    code = "lab"


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """One process that runs in the foreground until SIGTERM, and how to tell that it works.

    ``environment`` is added to a small clean one (``PATH``, ``LANG``, ``HOME``) and to the mark.
    ``port`` must be free on loopback before the start. ``ready`` answers whether the service does its work now; it may
    raise ``OSError`` to say no.
    ``platform`` is that of the host it belongs to. Times are seconds.
    """

    name: str
    command: tuple[str, ...]
    ready: Callable[[], Awaitable[bool]]
    kind: str = ""
    address: str = ""
    platform: str = ""
    port: int | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    ready_timeout: float = 60
    stop_timeout: float = 20
    cwd: Path | None = None


def mark(directory: Path, service: str) -> dict[str, str]:
    """The environment variables by which a process of ``service`` in the lab at ``directory`` is known again."""
    return {LAB_VARIABLE: str(directory.resolve()), SERVICE_VARIABLE: service}
