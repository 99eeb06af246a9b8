"""The states of a server, in Nova's words: what is stored, what is shown, and what a host's own words mean. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Vm(StrEnum):
    """What a server is (``vm_state``)."""

    BUILDING = "building"
    ACTIVE = "active"
    STOPPED = "stopped"
    ERROR = "error"
    DELETED = "deleted"


class Task(StrEnum):
    """What is being done to it (``task_state``); nothing where it has none."""

    SCHEDULING = "scheduling"
    SPAWNING = "spawning"
    POWERING_ON = "powering-on"
    POWERING_OFF = "powering-off"
    REBOOTING = "rebooting"
    REBOOTING_HARD = "rebooting_hard"
    DELETING = "deleting"


@dataclass(frozen=True, slots=True)
class Condition:
    """Both together."""

    vm: Vm
    task: Task | None = None


_OF_HOST: Final[Mapping[str, Condition]] = {
    "building": Condition(Vm.BUILDING, Task.SPAWNING),
    "failing": Condition(Vm.BUILDING, Task.SPAWNING),
    "active": Condition(Vm.ACTIVE),
    "stopped": Condition(Vm.STOPPED),
    "starting": Condition(Vm.STOPPED, Task.POWERING_ON),
    "stopping": Condition(Vm.ACTIVE, Task.POWERING_OFF),
    "rebooting": Condition(Vm.ACTIVE, Task.REBOOTING),
    "rebooting_hard": Condition(Vm.ACTIVE, Task.REBOOTING_HARD),
    "restarting": Condition(Vm.ACTIVE, Task.REBOOTING),
    "error": Condition(Vm.ERROR),
    "deleted": Condition(Vm.DELETED),
}

_POWER: Final = {Vm.ACTIVE: 1, Vm.STOPPED: 4}
"""Nova's numbers: running, shut down; 0 is not known."""

STATUSES: Final[Mapping[str, tuple[Vm, frozenset[Task | None] | None]]] = {
    "BUILD": (Vm.BUILDING, None),
    "ACTIVE": (Vm.ACTIVE, frozenset(set(Task) - {Task.REBOOTING, Task.REBOOTING_HARD} | {None})),
    "REBOOT": (Vm.ACTIVE, frozenset({Task.REBOOTING})),
    "HARD_REBOOT": (Vm.ACTIVE, frozenset({Task.REBOOTING_HARD})),
    "SHUTOFF": (Vm.STOPPED, None),
    "ERROR": (Vm.ERROR, None),
    "DELETED": (Vm.DELETED, None),
}
"""The statuses that a server can have here, each with the states that make it: one of these tasks, or any."""

FOREIGN_STATUSES: Final = frozenset(
    [
        "MIGRATING",
        "PASSWORD",
        "PAUSED",
        "REBUILD",
        "RESCUE",
        "RESIZE",
        "REVERT_RESIZE",
        "SHELVED",
        "SHELVED_OFFLOADED",
        "SOFT_DELETED",
        "SUSPENDED",
        "UNKNOWN",
        "VERIFY_RESIZE",
    ]
)
"""Nova's others, which no server has here."""


def of_host(state: str) -> Condition | None:
    """What the state of a host's record (``compute.record.State``) is in these words; ``None`` for none of them."""
    return _OF_HOST.get(state)


def status(vm: str, task: str | None) -> str:
    """What users see."""
    match vm, task:
        case Vm.ACTIVE, Task.REBOOTING:
            return "REBOOT"
        case Vm.ACTIVE, Task.REBOOTING_HARD:
            return "HARD_REBOOT"
    return {Vm.BUILDING: "BUILD", Vm.ACTIVE: "ACTIVE", Vm.STOPPED: "SHUTOFF", Vm.DELETED: "DELETED"}.get(
        Vm(vm), "ERROR"
    )


def power_state(vm: str) -> int:
    return _POWER.get(Vm(vm), 0)
