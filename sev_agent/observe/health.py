"""What the daemon leans on, and whether it can: the answer of ``/readyz``, with a reason for each."""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

import structlog

log = structlog.stdlib.get_logger(__name__)


class Dependency(StrEnum):
    """What a daemon cannot do its work without: services, and that its own queue is consumed."""

    LIBVIRT = "libvirt"
    BROKER = "broker"
    PLACEMENT = "placement"
    WORK_QUEUE = "work_queue"
    DATABASE = "database"
    KEYSTONE = "keystone"
    GLANCE = "glance"


OF_A_HOST = (
    Dependency.LIBVIRT,
    Dependency.BROKER,
    Dependency.PLACEMENT,
    Dependency.WORK_QUEUE,
    Dependency.KEYSTONE,
    Dependency.GLANCE,
)
"""What the host daemon leans on; where it sends no token, Keystone is not among it."""


@dataclass(frozen=True, slots=True)
class Condition:
    """Whether a dependency is up, why not, and since when (seconds of ``time.time``)."""

    up: bool
    reason: str
    since: float


class Health:
    """The condition of each dependency; ``on_change`` is called after every change of one, or of its reason."""

    def __init__(
        self, dependencies: Iterable[Dependency] = OF_A_HOST, *, on_change: Callable[[], None] | None = None
    ) -> None:
        now = time.time()
        self._conditions = {name: Condition(up=False, reason="not connected yet", since=now) for name in dependencies}
        self._on_change = on_change

    @property
    def conditions(self) -> Mapping[Dependency, Condition]:
        return self._conditions

    @property
    def is_ready(self) -> bool:
        return all(condition.up for condition in self._conditions.values())

    @property
    def summary(self) -> str:
        """One line for a person: ready, or what is not and why."""
        if self.is_ready:
            return "ready"
        reasons = (f"{name}: {condition.reason}" for name, condition in self._conditions.items() if not condition.up)
        return "not ready: " + "; ".join(reasons).replace("\n", " ")

    def up(self, dependency: Dependency) -> None:
        self._set(dependency, up=True, reason="")

    def down(self, dependency: Dependency, reason: str) -> bool:
        """Whether this is news: it was up, or down for another reason."""
        return self._set(dependency, up=False, reason=reason)

    def note(self, dependency: Dependency, fault: Exception | str | None) -> None:
        """Note that it is down for ``fault``, or up where there is none."""
        if fault is None:
            self.up(dependency)
        else:
            self.down(dependency, str(fault))

    def _set(self, dependency: Dependency, *, up: bool, reason: str) -> bool:
        before = self._conditions[dependency]
        if before.up == up and before.reason == reason:
            return False
        since = before.since if before.up == up else time.time()
        self._conditions[dependency] = Condition(up=up, reason=reason, since=since)
        if before.up != up:
            log.info("health.changed", dependency=dependency, up=up, reason=reason or None)
        if self._on_change is not None:
            self._on_change()
        return True
