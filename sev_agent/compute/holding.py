"""Who holds what in Placement: the consumers of a host and their allocations. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from uuid import UUID

from sev_agent.compute.allocation import ProviderTree, Resources, Size, StoppedGuests, desired
from sev_agent.compute.record import Record, State
from sev_agent.hypervisor.domains import Guest
from sev_agent.openstack.placement import Allocation


class ConsumerType(StrEnum):
    """Who holds an allocation: an instance of ours, or an encrypted guest that somebody else started."""

    INSTANCE = "INSTANCE"
    UNMANAGED = "UNMANAGED"


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """What a consumer holds, or should hold, in Placement."""

    resources: Mapping[UUID, Resources]
    consumer_type: ConsumerType
    project_id: str
    user_id: str

    def allocation(self, consumer_generation: int | None) -> Allocation:
        return Allocation(
            resources=self.resources,
            project_id=self.project_id,
            user_id=self.user_id,
            consumer_type=self.consumer_type,
            consumer_generation=consumer_generation,
        )


def wanted(
    record: Record | None, guest: Guest | None, tree: ProviderTree, *, stopped_guests: StoppedGuests
) -> Holding | None:
    """What should be held for what this host knows of one UUID; nothing where it should hold none.

    An instance that was built holds by its record, and an encrypted guest without such a record by what libvirt says.
    """
    if record is not None and record.state in {State.ACTIVE, State.STOPPED}:
        runs = guest is not None and guest.is_active
        holding = managed(record, tree, runs=runs, stopped_guests=stopped_guests)
    elif guest is not None and guest.generation is not None and guest.is_active:
        holding = _unmanaged(guest, tree)
    else:
        return None
    return holding if holding.resources else None


def managed(record: Record, tree: ProviderTree, *, runs: bool, stopped_guests: StoppedGuests = "release") -> Holding:
    """What the instance of ``record`` should hold."""
    instance = record.instance
    flavor = instance.flavor
    assert record.generation is not None, "a build learns the generation before it claims"
    size = Size(vcpus=flavor.vcpus, memory_mb=flavor.memory_mb, disk_gb=flavor.root_gb)
    return Holding(
        resources=desired(size, record.generation, runs=runs, tree=tree, stopped_guests=stopped_guests),
        consumer_type=ConsumerType.INSTANCE,
        project_id=instance.project_id or "unknown",
        user_id=instance.user_id or "unknown",
    )


def _unmanaged(guest: Guest, tree: ProviderTree) -> Holding:
    assert guest.generation is not None, "only encrypted guests are counted"
    size = Size(vcpus=guest.vcpus, memory_mb=guest.memory_mb, disk_gb=0)
    return Holding(
        resources=desired(size, guest.generation, runs=True, tree=tree, stopped_guests="release"),
        consumer_type=ConsumerType.UNMANAGED,
        project_id="unmanaged",
        user_id="unmanaged",
    )
