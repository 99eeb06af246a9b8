"""What a host has to give to guests, as Placement counts it."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

from sev_agent.compute.slots import Generations, SlotTotal
from sev_agent.config import PlacementSection
from sev_agent.errors import SevAgentError
from sev_agent.hypervisor.capabilities import HostCapabilities
from sev_agent.openstack.placement import Inventory
from sev_agent.question import Question
from sev_agent.sev.generation import Generation

_GIB: Final = 1024**3
_ANSWER_SECONDS: Final = 10.0


class DiskUnreadable(SevAgentError):
    """The disk that guests get theirs from cannot be looked at."""

    code = "host.disk_unreadable"
    retryable = True


@dataclass(frozen=True, slots=True)
class HostResources:
    """What the host has to give: the root's inventory, and the slots of each usable generation.

    ``unusable`` are the other generations, with the reason. ``hostname`` is the hypervisor's own: Nova names its
    provider so.
    """

    root: Mapping[str, Inventory]
    slots: Mapping[Generation, SlotTotal]
    hostname: str = ""
    unusable: Mapping[Generation, str] = field(default_factory=dict)


class Disk:
    """The disk of ``state_dir``, from which guests get theirs; it may be on the network, and hang."""

    def __init__(self, state_dir: Path) -> None:
        self._state_dir = state_dir
        self._question = Question(partial(shutil.disk_usage, state_dir), name="disk-size", limit=_ANSWER_SECONDS)

    async def size_gb(self) -> int:
        """All of it, in GiB. Raises ``DiskUnreadable``."""
        try:
            usage = await self._question.answer()
        except OSError as error:
            raise DiskUnreadable(
                f"the size of the disk of {self._state_dir} cannot be read: {error.strerror or error}",
                remedy="see that host.state_dir is there and its disk is mounted",
            ) from error
        return usage.total // _GIB


def host_resources(
    capabilities: HostCapabilities, found: Generations, disk_gb: int, settings: PlacementSection
) -> HostResources:
    """What a host with ``capabilities`` and a disk of ``disk_gb`` offers."""
    root = {
        "VCPU": _whole(capabilities.cpus, settings.reserved_host_cpus, settings.cpu_allocation_ratio),
        # Encrypted guests are pinned: memory cannot be promised twice.
        "MEMORY_MB": _whole(capabilities.memory_mb, settings.reserved_host_memory_mb, 1.0),
        "DISK_GB": _whole(disk_gb, settings.reserved_host_disk_gb, 1.0),
    }
    return HostResources(root=root, slots=found.usable, hostname=capabilities.hostname, unusable=found.unusable)


def _whole(total: int, reserved: int, ratio: float) -> Inventory:
    # Placement takes no reserve above the total, and no total below one.
    total = max(total, 1)
    return Inventory(total=total, reserved=min(reserved, total), max_unit=total, allocation_ratio=ratio)
