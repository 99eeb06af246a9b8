"""What an encrypted guest holds of its host in Placement, and who may hold it there. Pure."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Self

from sev_agent.sev.footprint import guest_footprint_mb


class ConsumerType(StrEnum):
    """Who holds an allocation.

    ``INSTANCE``: an instance of ours; Nova's own have this type too. ``UNMANAGED``: an encrypted guest that somebody
    else started. ``SCHEDULED``: a claim that a scheduler made for a request that has not reached the host yet.
    """

    INSTANCE = "INSTANCE"
    UNMANAGED = "UNMANAGED"
    SCHEDULED = "SCHEDULED"


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """What an instance takes of its host beside its encryption slot. ``memory_mb`` in MiB, ``disk_gb`` in GiB."""

    vcpus: int
    memory_mb: int
    disk_gb: int

    @classmethod
    def of_guest(cls, vcpus: int, memory_mb: int, disk_gb: int, *, overhead_mb: int) -> Self:
        """The size of a guest with so much RAM: schedulers and hosts must count it alike."""
        return cls(vcpus=vcpus, memory_mb=guest_footprint_mb(memory_mb, overhead_mb), disk_gb=disk_gb)

    @property
    def resources(self) -> dict[str, int]:
        """The amounts by resource class, those of zero left out: Placement takes none."""
        amounts = {"VCPU": self.vcpus, "MEMORY_MB": self.memory_mb, "DISK_GB": self.disk_gb}
        return {name: amount for name, amount in amounts.items() if amount}
