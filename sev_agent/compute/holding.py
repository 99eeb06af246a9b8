"""Who holds what in Placement: the consumers of a host and their allocations. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from uuid import UUID

from sev_agent.compute.allocation import ProviderTree, Resources, StoppedGuests, desired
from sev_agent.compute.record import Record, State
from sev_agent.hypervisor.domains import Guest
from sev_agent.openstack.placement import Allocation
from sev_agent.sev.holdings import ConsumerType, Size

OURS: frozenset[str] = frozenset({ConsumerType.UNMANAGED, ConsumerType.SCHEDULED})
"""The types that nobody but this project gives: such a consumer is never Nova's."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """How this host counts: what stopped guests keep, what guests take beside RAM and page tables (MiB), whose tree."""

    stopped_guests: StoppedGuests = "release"
    overhead_mb: int = 0
    beside_nova: bool = False


def wanted(record: Record | None, guest: Guest | None, tree: ProviderTree, terms: Terms) -> Holding | None:
    """What should be held for what this host knows of one UUID; nothing where it should hold none.

    An instance that was built holds by its record, and an encrypted guest without such a record by what libvirt says.
    Beside Nova, the guests that Nova made are counted by Nova.
    """
    if record is not None and record.state in {State.ACTIVE, State.STOPPED}:
        holding = managed(record, tree, terms, runs=guest is not None and guest.is_active)
    elif guest is not None and guest.generation is not None and guest.is_active:
        if terms.beside_nova and guest.is_novas:
            return None
        holding = _unmanaged(guest, tree, terms)
    else:
        return None
    return holding if holding.resources else None


def managed(record: Record, tree: ProviderTree, terms: Terms, *, runs: bool) -> Holding:
    """What the instance of ``record`` should hold."""
    instance = record.instance
    flavor = instance.flavor
    assert record.generation is not None, "a build learns the generation before it claims"
    size = Size.of_guest(flavor.vcpus, flavor.memory_mb, flavor.root_gb, overhead_mb=terms.overhead_mb)
    return Holding(
        resources=desired(size, record.generation, runs=runs, tree=tree, stopped_guests=terms.stopped_guests),
        consumer_type=ConsumerType.INSTANCE,
        project_id=instance.project_id or "unknown",
        user_id=instance.user_id or "unknown",
    )


def _unmanaged(guest: Guest, tree: ProviderTree, terms: Terms) -> Holding:
    assert guest.generation is not None, "only encrypted guests are counted"
    size = Size.of_guest(guest.vcpus, guest.memory_mb, 0, overhead_mb=terms.overhead_mb)
    return Holding(
        resources=desired(size, guest.generation, runs=True, tree=tree, stopped_guests="release"),
        consumer_type=ConsumerType.UNMANAGED,
        project_id="unmanaged",
        user_id="unmanaged",
    )
