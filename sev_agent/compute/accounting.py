"""Placement told the truth: each guest's allocation follows what libvirt runs."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from uuid import UUID

import structlog

from sev_agent.compute.allocation import ProviderTree, Resources, Size, desired
from sev_agent.compute.inventory import HostProviders, HostResources
from sev_agent.compute.record import Record, RecordStore, State
from sev_agent.config import PlacementSection
from sev_agent.errors import SevAgentError, Unavailable
from sev_agent.hypervisor.domains import Domains, Guest
from sev_agent.observe.metrics import Labelled
from sev_agent.openstack.placement import Allocation, ConcurrentUpdate, Placement, retry_conflicts

log = structlog.stdlib.get_logger(__name__)

_RETRY_SECONDS = 3.0
_PARALLEL_WRITES = 4


class ConsumerType(StrEnum):
    """Who holds an allocation: an instance of ours, or an encrypted guest that somebody else started."""

    INSTANCE = "INSTANCE"
    UNMANAGED = "UNMANAGED"


class NotRegistered(Unavailable):
    """Placement does not know this host yet."""

    code = "placement.not_registered"


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


@dataclass(frozen=True, slots=True)
class Difference:
    """One consumer whose allocation was not what it should be."""

    consumer: UUID
    held: Mapping[UUID, Resources]
    wanted: Mapping[UUID, Resources]


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """What one comparison found, and has repaired."""

    inventory_changed: bool
    differences: tuple[Difference, ...]

    @property
    def is_clean(self) -> bool:
        return not self.inventory_changed and not self.differences


class Accounting:
    """The only writer of this host's allocations.

    It works by level, not by edge: an event only marks an instance, and what is then written follows from what
    libvirt and the records say at that moment. Instances for which ``in_flight`` holds are left to the operation
    that works on them, which claims and releases by itself and marks them when it ends. ``on_seen`` is told whether
    libvirt runs a guest, before what it should hold is worked out.
    """

    def __init__(
        self,
        *,
        placement: Placement,
        providers: HostProviders,
        domains: Domains,
        store: RecordStore,
        settings: PlacementSection,
        in_flight: Callable[[UUID], bool],
        on_seen: Callable[[UUID, bool], Awaitable[None]],
    ) -> None:
        self._placement = placement
        self._providers = providers
        self._domains = domains
        self._store = store
        self._settings = settings
        self._in_flight = in_flight
        self._on_seen = on_seen
        self._tree: ProviderTree | None = None
        self._held: dict[UUID, Holding] = {}
        self._marked: set[UUID] = set()
        self._wake = asyncio.Event()
        self._verified: object = None

    def slots_used(self) -> Labelled:
        """Slots held by this host's guests, as last written, by generation."""
        if self._tree is None:
            return []
        return [
            ((generation.value,), float(sum(provider in holding.resources for holding in self._held.values())))
            for generation, provider in self._tree.generations.items()
        ]

    def mark(self, uuid: UUID) -> None:
        """Have the allocation of ``uuid`` brought up to date soon."""
        self._marked.add(uuid)
        self._wake.set()

    async def run(self) -> None:
        """Bring what was marked up to date, until cancelled; what could not be done is tried again."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            batch = frozenset(self._marked)
            self._marked.clear()
            try:
                await self._settle(batch)
            except SevAgentError as error:
                log.warning("accounting.postponed", instances=len(batch), error=str(error), code=error.code)
                self._marked |= batch
                self._wake.set()
                await asyncio.sleep(_RETRY_SECONDS)

    async def claim(self, record: Record) -> None:
        """Take the resources of ``record``'s instance, slot included, in one atomic step.

        Raises ``Full`` where the host has not enough left, ``Unavailable`` where Placement cannot say.
        """
        await self._write(record.uuid, self._managed(record, runs=True))

    async def release(self, uuid: UUID) -> None:
        """Give back all that ``uuid`` holds; harmless where it holds nothing."""
        await self._placement.release(uuid)
        self._held.pop(uuid, None)

    async def reconcile(self, resources: HostResources) -> Reconciliation:
        """Compare all that Placement counts here with what libvirt runs, and repair every difference.

        When nothing changed since the last clean comparison this costs Placement one read and no write: each write
        to a provider, by whomever, raises its generation, so equal generations prove that nothing moved.
        """
        guests = await self._guests()
        wanted = self._wanted_by_all(guests)
        state = (resources, wanted, await self._generations())
        if state[2] and state == self._verified:
            return Reconciliation(inventory_changed=False, differences=())
        self._tree, changed = await self._providers.establish(resources)
        wanted = self._wanted_by_all(guests)
        held = await self._held_by_all(self._tree)
        differences = tuple(
            Difference(uuid, held.get(uuid, {}), wanted[uuid].resources if uuid in wanted else {})
            for uuid in held.keys() | wanted.keys()
            if not self._in_flight(uuid) and held.get(uuid, {}) != (wanted[uuid].resources if uuid in wanted else {})
        )
        for difference in differences:
            self._held.pop(difference.consumer, None)
        await self._settle(frozenset(difference.consumer for difference in differences), surplus=frozenset(held))
        outcome = Reconciliation(inventory_changed=changed, differences=differences)
        self._verified = state if outcome.is_clean else None
        return outcome

    async def _generations(self) -> frozenset[tuple[UUID, int]]:
        if self._tree is None:
            return frozenset()
        return frozenset((p.uuid, p.generation) for p in await self._placement.tree(self._tree.root))

    async def _settle(self, uuids: Iterable[UUID], *, surplus: frozenset[UUID] = frozenset()) -> None:
        """Write what each of ``uuids`` should hold as things stand now; ``surplus`` are known to hold something."""
        pending = [uuid for uuid in uuids if not self._in_flight(uuid)]
        if not pending:
            return
        guests = await self._guests()
        gate = asyncio.Semaphore(_PARALLEL_WRITES)

        async def settle(uuid: UUID) -> None:
            async with gate:
                if self._in_flight(uuid):
                    return
                guest = guests.get(uuid)
                await self._on_seen(uuid, guest is not None and guest.state.is_active)
                holding = self._wanted(uuid, guest)
                if holding is None:
                    if uuid in self._held or uuid in surplus:
                        await self.release(uuid)
                elif self._held.get(uuid) != holding:
                    await self._write(uuid, holding)

        results = await asyncio.gather(*(settle(uuid) for uuid in pending), return_exceptions=True)
        failures = [result for result in results if isinstance(result, BaseException)]
        if failures:
            raise failures[0]

    async def _guests(self) -> dict[UUID, Guest]:
        return {guest.uuid: guest for guest in await self._domains.guests()}

    def _wanted_by_all(self, guests: Mapping[UUID, Guest]) -> dict[UUID, Holding]:
        if self._tree is None:
            return {}
        consumers = guests.keys() | {record.uuid for record in self._store}
        wanted = {uuid: self._wanted(uuid, guests.get(uuid)) for uuid in consumers if not self._in_flight(uuid)}
        return {uuid: holding for uuid, holding in wanted.items() if holding is not None}

    def _wanted(self, uuid: UUID, guest: Guest | None) -> Holding | None:
        runs = guest is not None and guest.state.is_active
        record = self._store.get(uuid)
        if record is not None and record.state in {State.ACTIVE, State.STOPPED}:
            holding = self._managed(record, runs=runs)
        elif guest is not None and guest.generation is not None and runs:
            holding = self._unmanaged(guest)
        else:
            return None
        return holding if holding.resources else None

    def _managed(self, record: Record, *, runs: bool) -> Holding:
        instance = record.instance
        flavor = instance.flavor
        assert record.generation is not None, "a build learns the generation before it claims"
        size = Size(vcpus=flavor.vcpus, memory_mb=flavor.memory_mb, disk_gb=flavor.root_gb)
        tree, policy = self._known_tree(), self._settings.stopped_guests
        return Holding(
            resources=desired(size, record.generation, runs=runs, tree=tree, stopped_guests=policy),
            consumer_type=ConsumerType.INSTANCE,
            project_id=instance.project_id or "unknown",
            user_id=instance.user_id or "unknown",
        )

    def _unmanaged(self, guest: Guest) -> Holding:
        assert guest.generation is not None
        size = Size(vcpus=guest.vcpus, memory_mb=guest.memory_mb, disk_gb=0)
        tree = self._known_tree()
        return Holding(
            resources=desired(size, guest.generation, runs=True, tree=tree, stopped_guests="release"),
            consumer_type=ConsumerType.UNMANAGED,
            project_id="unmanaged",
            user_id="unmanaged",
        )

    def _known_tree(self) -> ProviderTree:
        if self._tree is None:
            raise NotRegistered(
                "this host has not registered at Placement yet", remedy="see /readyz for what Placement answers"
            )
        return self._tree

    async def _write(self, uuid: UUID, holding: Holding) -> None:
        try:
            # Most consumers are new: one request then does it.
            if uuid not in self._held:
                await self._placement.put_allocation(uuid, holding.allocation(None))
                self._held[uuid] = holding
                return
        except ConcurrentUpdate:
            log.debug("accounting.consumer_exists", instance_uuid=str(uuid))

        async def replace() -> None:
            present = await self._placement.allocation(uuid)
            generation = present.consumer_generation if present is not None else None
            if present is None or present != holding.allocation(generation):
                await self._placement.put_allocation(uuid, holding.allocation(generation))

        await retry_conflicts(replace)
        self._held[uuid] = holding

    async def _held_by_all(self, tree: ProviderTree) -> dict[UUID, dict[UUID, Resources]]:
        held: dict[UUID, dict[UUID, Resources]] = {}
        for provider in (tree.root, *tree.generations.values()):
            _, allocations = await self._placement.provider_allocations(provider)
            for consumer, resources in allocations.items():
                held.setdefault(consumer, {})[provider] = resources
        return held
