"""What libvirt tells of its domains, as values."""

from dataclasses import dataclass
from enum import StrEnum
from uuid import UUID

import libvirt  # noqa: TID251 - this package is the one that may


class Lifecycle(StrEnum):
    """What happened to a domain, by libvirt's names; ``REBOOTED`` is libvirt's separate reboot event."""

    DEFINED = "defined"
    UNDEFINED = "undefined"
    STARTED = "started"
    SUSPENDED = "suspended"
    RESUMED = "resumed"
    STOPPED = "stopped"
    SHUTDOWN = "shutdown"
    PMSUSPENDED = "pmsuspended"
    CRASHED = "crashed"
    REBOOTED = "rebooted"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class LifecycleEvent:
    """One event of one domain.

    ``detail`` is libvirt's name of the cause (``booted``, ``destroyed``, ``shutdown``), or its number where this
    libvirt is newer than the table. ``received`` is when it reached this process, by ``time.monotonic``.
    """

    uuid: UUID
    name: str
    event: Lifecycle
    detail: str
    received: float


_DETAIL_PREFIXES = {
    Lifecycle.DEFINED: "VIR_DOMAIN_EVENT_DEFINED_",
    Lifecycle.UNDEFINED: "VIR_DOMAIN_EVENT_UNDEFINED_",
    Lifecycle.STARTED: "VIR_DOMAIN_EVENT_STARTED_",
    Lifecycle.SUSPENDED: "VIR_DOMAIN_EVENT_SUSPENDED_",
    Lifecycle.RESUMED: "VIR_DOMAIN_EVENT_RESUMED_",
    Lifecycle.STOPPED: "VIR_DOMAIN_EVENT_STOPPED_",
    Lifecycle.SHUTDOWN: "VIR_DOMAIN_EVENT_SHUTDOWN_",
    Lifecycle.PMSUSPENDED: "VIR_DOMAIN_EVENT_PMSUSPENDED_",
    Lifecycle.CRASHED: "VIR_DOMAIN_EVENT_CRASHED_",
}


class LifecycleNames:
    """libvirt's numbers of events and details, by the names that the libvirt at hand gives them."""

    def __init__(self) -> None:
        self._events = {getattr(libvirt, f"VIR_DOMAIN_EVENT_{event.name}"): event for event in _DETAIL_PREFIXES}
        self._details: dict[tuple[Lifecycle, int], str] = {
            (event, value): name.removeprefix(prefix).lower()
            for event, prefix in _DETAIL_PREFIXES.items()
            for name, value in vars(libvirt).items()
            if name.startswith(prefix) and not name.endswith("_LAST")
        }

    def event(self, number: int) -> Lifecycle:
        return self._events.get(number, Lifecycle.UNKNOWN)

    def detail(self, event: Lifecycle, number: int) -> str:
        return self._details.get((event, number), str(number))
