"""Placement told the truth: each guest's allocation follows what libvirt runs."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from uuid import UUID
from weakref import WeakValueDictionary

import structlog

from sev_agent.compute.allocation import ProviderTree, Resources
from sev_agent.compute.holding import Holding, managed, wanted
from sev_agent.compute.inventory import HostProviders, HostResources
from sev_agent.compute.record import Record, RecordStore
from sev_agent.config import PlacementSection
from sev_agent.errors import SevAgentError, Unavailable
from sev_agent.hypervisor.domains import Domains, Guest
from sev_agent.observe.metrics import Labelled
from sev_agent.openstack.placement import (
    ConcurrentUpdate,
    Placement,
    ProviderSummary,
    RequestGroup,
    retry_conflicts,
)
from sev_agent.uninterrupted import raise_if_cancelled

log = structlog.stdlib.get_logger(__name__)

_RETRY_SECONDS = 3.0
_PARALLEL_WRITES = 4


class NotRegistered(Unavailable):
    """Placement does not know this host yet."""

    code = "placement.not_registered"


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
    unrepaired: Mapping[UUID, SevAgentError] = field(default_factory=dict)
    """What Placement refused, by consumer: a guest that libvirt runs beyond what the host has, for one."""

    @property
    def is_clean(self) -> bool:
        return not self.inventory_changed and not self.differences


@dataclass(frozen=True, slots=True)
class _Settled:
    """The consumers that had to be written, and those that could not be."""

    written: frozenset[UUID]
    failed: Mapping[UUID, SevAgentError]


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
        self._late: set[UUID] = set()
        self._complaint = ""
        # A look at libvirt and the writes that follow from it exclude one another: the older look never wins.
        self._settling = asyncio.Lock()
        # A consumer is written by one at a time: who settles it must not undo a claim that was just made for it.
        self._locks: WeakValueDictionary[UUID, asyncio.Lock] = WeakValueDictionary()
        self._verified: object = None

    @property
    def is_registered(self) -> bool:
        """Whether Placement knows this host, so that something can be claimed from it."""
        return self._tree is not None

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
            raise_if_cancelled()
            await self._wake.wait()
            self._wake.clear()
            batch = frozenset(self._marked)
            self._marked.clear()
            try:
                async with self._settling:
                    failed = (await self._settle(batch)).failed
            except SevAgentError as error:
                failed = dict.fromkeys(batch, error)
            self._postpone(failed)

    async def claim(self, record: Record) -> None:
        """Take the resources of ``record``'s instance, slot included, in one atomic step.

        Raises ``Full`` where the host has not enough left, ``Unavailable`` where Placement cannot say.
        """
        async with self._lock(record.uuid):
            await self._write(record.uuid, managed(record, self._known_tree(), runs=True))

    async def rest(self, record: Record) -> None:
        """Give back what ``record``'s instance, which has stopped, does not keep. Raises as ``claim``."""
        async with self._lock(record.uuid):
            policy = self._settings.stopped_guests
            holding = managed(record, self._known_tree(), runs=False, stopped_guests=policy)
            if holding.resources:
                await self._write(record.uuid, holding)
            else:
                await self._release(record.uuid)

    async def release(self, uuid: UUID) -> None:
        """Give back all that ``uuid`` holds; harmless where it holds nothing."""
        async with self._lock(uuid):
            await self._release(uuid)

    async def reconcile(self, resources: HostResources) -> Reconciliation:
        """Compare all that Placement counts here with what libvirt runs, and repair every difference.

        When nothing changed since the last clean comparison this costs Placement one read and no write. What an
        operation worked on at any time meanwhile is left to that. Raises ``Unavailable`` where libvirt or Placement is
        away, and what Placement says against the inventory.
        """
        busy = frozenset(record.uuid for record in self._store if self._in_flight(record.uuid))
        guests = await self._look(busy)
        state = (resources, self._wanted_by_all(guests, busy), await self._counted())
        if state[2] and state == self._verified:
            return Reconciliation(inventory_changed=False, differences=())
        self._tree, changed = await self._providers.establish(resources)
        held = await self._held_by_all(self._tree)
        differences = self._compare(held, self._wanted_by_all(guests, busy), busy)
        async with self._settling:
            settled = await self._settle(differences, surplus=frozenset(held))
        for error in settled.failed.values():
            if isinstance(error, Unavailable):
                raise error
        # Some of them were settled by an event meanwhile: those are no news.
        found = tuple(differences[uuid] for uuid in differences if uuid in settled.written or uuid in settled.failed)
        outcome = Reconciliation(inventory_changed=changed, differences=found, unrepaired=settled.failed)
        self._verified = state if outcome.is_clean else None
        return outcome

    async def _look(self, busy: frozenset[UUID]) -> dict[UUID, Guest]:
        """What libvirt runs; every record that stands still learns whether its guest does."""
        idle = [record.uuid for record in self._store if record.uuid not in busy]
        async with self._settling:
            guests = await self._guests()
            for uuid in idle:
                await self._tell(uuid, guests.get(uuid))
        return guests

    async def _counted(self) -> Mapping[UUID, ProviderSummary]:
        """Capacity, usage and traits of this host's providers, in one read; nothing where the disk is given out.

        Providers' generations would not do: the deletion of an allocation raises none.
        """
        if self._tree is None:
            return {}
        any_at_all = RequestGroup(resources={"DISK_GB": 1}, in_tree=self._tree.root)
        return (await self._placement.allocation_candidates({"": any_at_all}, limit=1)).providers

    def _compare(
        self, held: Mapping[UUID, Mapping[UUID, Resources]], holdings: Mapping[UUID, Holding], busy: frozenset[UUID]
    ) -> dict[UUID, Difference]:
        """The consumers of which Placement counts something else than it should; the rest is noted as held."""
        differences: dict[UUID, Difference] = {}
        for uuid in held.keys() | holdings.keys() | self._held.keys():
            if uuid in busy or self._in_flight(uuid):
                continue
            holding = holdings.get(uuid)
            difference = Difference(uuid, held.get(uuid, {}), holding.resources if holding is not None else {})
            self._held.pop(uuid, None)
            if difference.held != difference.wanted:
                differences[uuid] = difference
            elif holding is not None:
                self._held[uuid] = holding
        return differences

    async def _settle(self, uuids: Iterable[UUID], *, surplus: frozenset[UUID] = frozenset()) -> _Settled:
        """Write what each of ``uuids`` should hold as things stand now; ``surplus`` are known to hold something."""
        pending = [uuid for uuid in uuids if not self._in_flight(uuid)]
        if not pending:
            return _Settled(frozenset(), {})
        guests = await self._guests()
        gate = asyncio.Semaphore(_PARALLEL_WRITES)
        failed: dict[UUID, SevAgentError] = {}

        async def settle(uuid: UUID) -> UUID | None:
            async with gate, self._lock(uuid):
                try:
                    return uuid if await self._settle_one(uuid, guests.get(uuid), holds=uuid in surplus) else None
                except SevAgentError as error:
                    failed[uuid] = error
                    return None

        written = await asyncio.gather(*(settle(uuid) for uuid in pending))
        return _Settled(frozenset(uuid for uuid in written if uuid is not None), failed)

    async def _settle_one(self, uuid: UUID, guest: Guest | None, *, holds: bool) -> bool:
        """Whether something had to be written."""
        if self._in_flight(uuid):
            return False
        await self._tell(uuid, guest)
        holding = self._wanted(uuid, guest)
        if holding is None:
            return (holds or uuid in self._held) and await self._release(uuid)
        return self._held.get(uuid) != holding and await self._write(uuid, holding)

    async def _tell(self, uuid: UUID, guest: Guest | None) -> None:
        if not self._in_flight(uuid):
            await self._on_seen(uuid, guest is not None and guest.is_active)

    def _postpone(self, failed: Mapping[UUID, SevAgentError]) -> None:
        """Have ``failed`` settled again later, without holding up what is marked meanwhile."""
        complaint = str(next(iter(failed.values()), ""))
        if complaint != self._complaint and complaint:  # said once, not at every attempt
            log.warning("accounting.postponed", instances=len(failed), error=complaint)
        if not failed:
            self._complaint = "" if not self._late else self._complaint
            return
        self._complaint = complaint
        if not self._late:
            asyncio.get_running_loop().call_later(_RETRY_SECONDS, self._retry)
        self._late |= failed.keys()

    def _retry(self) -> None:
        self._marked |= self._late
        self._late.clear()
        self._wake.set()

    def _lock(self, uuid: UUID) -> asyncio.Lock:
        return self._locks.setdefault(uuid, asyncio.Lock())

    async def _guests(self) -> dict[UUID, Guest]:
        return {guest.uuid: guest for guest in await self._domains.guests()}

    def _wanted_by_all(self, guests: Mapping[UUID, Guest], busy: frozenset[UUID]) -> dict[UUID, Holding]:
        if self._tree is None:
            return {}
        consumers = (guests.keys() | {record.uuid for record in self._store}) - busy
        holdings = {uuid: self._wanted(uuid, guests.get(uuid)) for uuid in consumers if not self._in_flight(uuid)}
        return {uuid: holding for uuid, holding in holdings.items() if holding is not None}

    def _wanted(self, uuid: UUID, guest: Guest | None) -> Holding | None:
        policy = self._settings.stopped_guests
        return wanted(self._store.get(uuid), guest, self._known_tree(), stopped_guests=policy)

    def _known_tree(self) -> ProviderTree:
        if self._tree is None:
            raise NotRegistered(
                "this host has not registered at Placement yet", remedy="see /readyz for what Placement answers"
            )
        return self._tree

    async def _write(self, uuid: UUID, holding: Holding) -> bool:
        """Whether Placement had it otherwise."""
        try:
            # Most consumers are new: one request then does it.
            if uuid not in self._held:
                await self._placement.put_allocation(uuid, holding.allocation(None))
                self._held[uuid] = holding
                return True
        except ConcurrentUpdate:
            log.debug("accounting.consumer_exists", instance_uuid=str(uuid))

        async def replace() -> bool:
            present = await self._placement.allocation(uuid)
            generation = present.consumer_generation if present is not None else None
            if present is not None and present == holding.allocation(generation):
                return False
            await self._placement.put_allocation(uuid, holding.allocation(generation))
            return True

        changed = await retry_conflicts(replace)
        self._held[uuid] = holding
        return changed

    async def _release(self, uuid: UUID) -> bool:
        """Whether it held something."""
        released = await self._placement.release(uuid)
        self._held.pop(uuid, None)
        return released

    async def _held_by_all(self, tree: ProviderTree) -> dict[UUID, dict[UUID, Resources]]:
        held: dict[UUID, dict[UUID, Resources]] = {}
        for provider in (tree.root, *tree.generations.values()):
            _, allocations = await self._placement.provider_allocations(provider)
            for consumer, resources in allocations.items():
                held.setdefault(consumer, {})[provider] = resources
        return held
