"""Placement told the truth: each guest's allocation follows what libvirt runs."""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Final
from uuid import UUID

import structlog

from sev_agent.compute.admission import GenerationUnavailable
from sev_agent.compute.allocation import ProviderTree
from sev_agent.compute.drift import Comparison, Difference, Reconciliation, compare
from sev_agent.compute.holding import OURS, Holding, Terms, managed, wanted
from sev_agent.compute.inventory import HostResources
from sev_agent.compute.ledger import Ledger
from sev_agent.compute.postponed import Postponed
from sev_agent.compute.provider_upkeep import Providers
from sev_agent.compute.record import Record
from sev_agent.compute.record_store import JournalFailed, RecordStore
from sev_agent.compute.strangers import Strangers
from sev_agent.compute.tree_summary import TreeSummary
from sev_agent.config import PlacementSection
from sev_agent.crash_points import CrashPoint, reached
from sev_agent.errors import SevAgentError, Unavailable
from sev_agent.hypervisor.domains import Domains, Guest
from sev_agent.observe.metrics import Labelled
from sev_agent.openstack.placement import Full, Placement
from sev_agent.sev.generation import RESOURCE_CLASS
from sev_agent.uninterrupted import raise_if_cancelled

log = structlog.stdlib.get_logger(__name__)

_PARALLEL_WRITES = 4
_FEW: Final = 32
"""Guests that are looked at one by one, so that an event costs the same on a full host; more are seen in one look."""


class NotRegistered(Unavailable):
    """Placement does not know this host yet."""

    code = "placement.not_registered"


@dataclass(frozen=True, slots=True)
class _Settled:
    """The consumers that had to be written, and those that could not be."""

    written: frozenset[UUID]
    failed: Mapping[UUID, SevAgentError]

    @property
    def may_have_made_room(self) -> bool:
        """Whether something was given back, or may have been: an answer may be lost, and the write carried out."""
        return bool(self.written) or any(not isinstance(error, Full) for error in self.failed.values())


@dataclass(frozen=True, slots=True)
class _Seen:
    """What a comparison is made of: what libvirt runs, and the instances that an operation had in hand by then."""

    guests: Mapping[UUID, Guest]
    busy: frozenset[UUID]


class Accounting:
    """The only writer of this host's allocations.

    It works by level, not by edge: an event only marks an instance, and what is then written follows from what
    libvirt and the records say at that moment. Instances for which ``in_flight`` holds are left to the operation
    that works on them, which claims and releases by itself and marks them when it ends. ``on_seen`` is told whether
    libvirt runs a guest, before what it should hold is worked out. Where it raises ``JournalFailed``, the counting goes
    on, and the next look tells it again. ``may_write`` returns once this daemon may count for its host; before, the
    host is not registered either, so nothing can be claimed.
    """

    def __init__(
        self,
        *,
        placement: Placement,
        providers: Providers,
        domains: Domains,
        store: RecordStore,
        settings: PlacementSection,
        in_flight: Callable[[UUID], bool],
        on_seen: Callable[[UUID, bool], Awaitable[None]],
        may_write: Callable[[], Awaitable[None]],
    ) -> None:
        self._summary = TreeSummary(placement)
        self._providers = providers
        self._domains = domains
        self._store = store
        self._terms = Terms(
            stopped_guests=settings.stopped_guests,
            overhead_mb=settings.guest_overhead_mb,
            beside_nova=settings.mode == "beside-nova",
        )
        self._in_flight = in_flight
        self._on_seen = on_seen
        self._may_write = may_write
        self._tree: ProviderTree | None = None
        self._ledger = Ledger(placement, is_ours=self._is_ours)
        self._marked: set[UUID] = set()
        self._wake = asyncio.Event()
        self._postponed = Postponed(self._mark_all)
        self._reconciling = asyncio.Lock()
        # A look at libvirt and the writes that follow from it exclude one another: the older look never wins.
        self._settling = asyncio.Lock()
        self._verified: object = None
        self._untold: tuple[Difference, ...] = ()
        self._strangers = Strangers(self._ledger, beside_nova=self._terms.beside_nova, grace=settings.claim_grace)

    @property
    def is_registered(self) -> bool:
        """Whether Placement knows this host, so that something can be claimed from it."""
        return self._tree is not None

    def slots_used(self) -> Labelled:
        """Slots held by this host's guests, as last written, by generation."""
        if self._tree is None:
            return []
        held = [holding.resources for holding in self._ledger.held.values()]
        return [
            ((generation.value,), float(sum(RESOURCE_CLASS in resources.get(provider, {}) for resources in held)))
            for generation, provider in self._tree.generations.items()
        ]

    def mark(self, uuid: UUID) -> None:
        """Have the allocation of ``uuid`` brought up to date soon."""
        self._mark_all((uuid,))

    def _mark_all(self, uuids: Collection[UUID]) -> None:
        self._marked.update(uuids)
        self._wake.set()

    async def run(self) -> None:
        """Bring what was marked up to date, until cancelled; what could not be done is tried again.

        What Placement has no room for is not, before something is written that may have made room.
        """
        while True:
            raise_if_cancelled()
            await self._wake.wait()
            await self._may_write()
            async with self._settling:
                # Not before: what stands marked while others look and write is newer than what they saw.
                self._wake.clear()
                batch = frozenset(self._marked)
                self._marked.clear()
                begun = self._postponed.begin(batch)
                try:
                    settled = await self._settle(batch)
                except SevAgentError as error:
                    settled = _Settled(frozenset(), dict.fromkeys(batch, error))
            self._postponed.add(settled.failed, since=begun)
            if settled.may_have_made_room:
                self._postponed.made_room()

    async def claim(self, record: Record) -> None:
        """Take the resources of ``record``'s instance, slot included, in one atomic step.

        Raises ``Full`` where the host has not enough left, ``Unavailable`` where Placement cannot say, and
        ``GenerationUnavailable`` where it counts no slots of this generation here.
        """
        async with self._ledger.lock(record.uuid):
            tree = self._known_tree()
            if record.generation is not None and record.generation not in tree.generations:
                raise GenerationUnavailable(
                    f"Placement counts no slots of {record.generation} on this host",
                    remedy=f"use another host, or ask this one: sev-agent check --generation {record.generation}",
                )
            holding = managed(record, tree, self._terms, runs=True)
            # What a scheduler sent it has claimed already.
            await self._ledger.write(record.uuid, holding, tree, likely_new=record.scheduling is None)

    async def rest(self, record: Record) -> None:
        """Give back what ``record``'s instance, which has stopped, does not keep. Raises as ``claim``."""
        async with self._ledger.lock(record.uuid):
            tree = self._known_tree()
            holding = managed(record, tree, self._terms, runs=False)
            try:
                if holding.resources:
                    await self._ledger.write(record.uuid, holding, tree)
                else:
                    await self._ledger.release(record.uuid, tree)
            finally:
                self._postponed.made_room()

    async def release(self, uuid: UUID) -> None:
        """Give back all that ``uuid`` holds; harmless where it holds nothing."""
        async with self._ledger.lock(uuid):
            try:
                await self._ledger.release(uuid, self._known_tree())
            finally:
                self._postponed.made_room()

    async def reconcile(
        self, resources: HostResources, *, thorough: bool = False, dry_run: bool = False
    ) -> Reconciliation:
        """Compare all that Placement counts here with what libvirt runs, and repair every difference.

        When nothing changed since the last clean comparison this costs Placement one read and no write, unless it is to
        be ``thorough``. What an operation worked on at any time meanwhile is left to that. A ``dry_run`` is thorough,
        and changes nothing here or there. Raises ``Unavailable`` where libvirt or Placement is away, and what Placement
        says against the inventory.
        """
        if not dry_run:
            await self._may_write()
        async with self._reconciling:
            if dry_run:
                return await self._rehearse(resources)
            return await self._reconcile(resources, thorough=thorough)

    async def _reconcile(self, resources: HostResources, *, thorough: bool) -> Reconciliation:
        with self._ledger.watching() as written:
            reached(CrashPoint.RECONCILE_BEFORE_LOOK)
            seen = await self._look(tell=True)
            reached(CrashPoint.RECONCILE_AFTER_LOOK)
            holdings = self._wanted_by_all(seen, self._tree)
            counted = {} if self._tree is None else await self._summary.of(self._tree.root)
            state = (resources, holdings, counted)
            if counted and state == self._verified and not thorough:
                return Reconciliation(unrepaired={})
            # Whatever ends this before its writes are done, the next comparison has to look at all of it again.
            self._verified = None
            established = await self._providers.establish(resources)
            reached(CrashPoint.RECONCILE_AFTER_PROVIDERS)
            self._tree = tree = self._known(established.tree)
            compared = await self._compared(seen, tree, written)
            self._remember(compared)
        reached(CrashPoint.RECONCILE_AFTER_PLAN)
        differences = compared.wrong
        async with self._settling:
            settled = await self._settle(differences)
        if settled.may_have_made_room:
            self._postponed.made_room()
        reached(CrashPoint.RECONCILE_AFTER_WRITES)
        for error in settled.failed.values():
            if isinstance(error, Unavailable):
                # What was repaired before it went away is right from now on, and nobody has heard of it.
                self._untold += tuple(found for uuid, found in differences.items() if uuid in settled.written)
                raise error
        touched = settled.written | settled.failed.keys()
        found = self._untold + tuple(differences[uuid] for uuid in differences if uuid in touched)
        self._untold = ()
        outcome = Reconciliation(differences=found, unrepaired=settled.failed, providers=established.differences)
        is_sure = not differences and outcome.is_clean and not written and not self._strangers.any_wait
        if is_sure:
            self._verified = state
        return outcome

    def _remember(self, compared: Comparison) -> None:
        for uuid, holding in compared.right.items():
            self._ledger.note(uuid, holding)
        for uuid in compared.wrong:
            if uuid in compared.holders:
                # Who settles it by an event, before the comparison comes to it, has to know that there is something.
                self._ledger.doubt(uuid)
            else:
                self._ledger.note(uuid, None)

    async def _rehearse(self, resources: HostResources) -> Reconciliation:
        """Everything but the writing."""
        with self._ledger.watching() as written:
            seen = await self._look(tell=False)
            established = await self._providers.establish(resources, dry_run=True)
            tree = established.tree
            if tree is None:
                return Reconciliation(unrepaired={}, providers=established.differences, dry_run=True)
            compared = await self._compared(seen, tree, written)
        found = tuple(compared.wrong.values())
        return Reconciliation(differences=found, unrepaired={}, providers=established.differences, dry_run=True)

    async def _look(self, *, tell: bool) -> _Seen:
        """What libvirt runs; every record that stands still learns whether its guest does."""
        busy = frozenset(record.uuid for record in self._store if self._in_flight(record.uuid))
        async with self._settling:
            guests = await self._guests()
            for uuid in [record.uuid for record in self._store.here() if record.uuid not in busy] if tell else ():
                await self._tell(uuid, guests.get(uuid))
        return _Seen(guests, busy)

    def _is_ours(self, uuid: UUID, consumer_type: str) -> bool:
        if not self._terms.beside_nova or consumer_type in OURS:
            return True
        record = self._store.get(uuid)
        return record is not None and not record.foreign

    async def _compared(self, seen: _Seen, tree: ProviderTree, written: Collection[UUID]) -> Comparison:
        """What Placement counts of ``tree`` beside what it should, but for what is not to be touched."""
        held = await self._ledger.read(tree)
        unknown = {uuid: held[uuid] for uuid in held if self._wanted(uuid, seen.guests.get(uuid), tree) is None}
        strangers = await self._strangers.to_leave(
            {uuid: amounts for uuid, amounts in unknown.items() if not self._knows(uuid)}
        )
        holdings = self._wanted_by_all(seen, tree)
        # What an event settled meanwhile was read too early here, and is no news.
        leave = strangers | seen.busy | frozenset(written)
        consumers = held.keys() | holdings.keys() | self._ledger.held.keys()
        return compare(held, holdings, [uuid for uuid in consumers if uuid not in leave and not self._in_flight(uuid)])

    def _knows(self, uuid: UUID) -> bool:
        """Whether ``uuid`` is an instance of this host. One that is over may be scheduled here again."""
        record = self._store.get(uuid)
        return record is not None and not record.foreign and (self._terms.beside_nova or record.state.has_files)

    async def _settle(self, uuids: Iterable[UUID]) -> _Settled:
        """Write what each of ``uuids`` should hold as things stand now."""
        pending = [uuid for uuid in uuids if not self._is_left(uuid)]
        if not pending:
            return _Settled(frozenset(), {})
        guests = await self._guests(pending if len(pending) <= _FEW else None)
        gate = asyncio.Semaphore(_PARALLEL_WRITES)
        failed: dict[UUID, SevAgentError] = {}

        async def settle(uuid: UUID) -> UUID | None:
            async with gate, self._ledger.lock(uuid):
                try:
                    return uuid if await self._settle_one(uuid, guests.get(uuid)) else None
                except SevAgentError as error:
                    failed[uuid] = error
                    return None

        written = await asyncio.gather(*(settle(uuid) for uuid in pending))
        return _Settled(frozenset(uuid for uuid in written if uuid is not None), failed)

    async def _settle_one(self, uuid: UUID, guest: Guest | None) -> bool:
        """Whether something had to be written."""
        if self._is_left(uuid):
            return False
        await self._tell(uuid, guest)
        if self._is_left(uuid):  # an operation was accepted while the record was written
            return False
        tree = self._known_tree()
        holding = self._wanted(uuid, guest, tree)
        if holding is None:
            return self._ledger.may_hold(uuid) and await self._ledger.release(uuid, tree)
        return self._ledger.held.get(uuid) != holding and await self._ledger.write(uuid, holding, tree)

    def _is_left(self, uuid: UUID) -> bool:
        """Whether what was seen of ``uuid`` is not to be acted upon.

        An operation that began and ended since the look is in flight no more, but has marked its instance, whether it
        wrote anything to Placement or not. The next round looks again.
        """
        return uuid in self._marked or self._in_flight(uuid)

    async def _tell(self, uuid: UUID, guest: Guest | None) -> None:
        """Tell whether the guest runs. Where that cannot be noted, Placement is told the truth all the same."""
        if self._is_left(uuid):
            return
        try:
            await self._on_seen(uuid, guest is not None and guest.is_active)
        except JournalFailed as error:
            # The record stays as it was, so that the next look finds it wrong again, and tells it again.
            log.warning("accounting.untold", instance_uuid=str(uuid), code=error.code, error=str(error))

    async def _guests(self, among: Collection[UUID] | None = None) -> dict[UUID, Guest]:
        guests = self._domains.guests() if among is None else self._domains.guests_among(among)
        return {guest.uuid: guest for guest in await guests}

    def _wanted_by_all(self, seen: _Seen, tree: ProviderTree | None) -> dict[UUID, Holding]:
        if tree is None:
            return {}
        consumers = (seen.guests.keys() | {record.uuid for record in self._store.here()}) - seen.busy
        idle = [uuid for uuid in consumers if not self._in_flight(uuid)]
        holdings = {uuid: self._wanted(uuid, seen.guests.get(uuid), tree) for uuid in idle}
        return {uuid: holding for uuid, holding in holdings.items() if holding is not None}

    def _wanted(self, uuid: UUID, guest: Guest | None, tree: ProviderTree) -> Holding | None:
        return wanted(self._store.get(uuid), guest, tree, self._terms)

    def _known_tree(self) -> ProviderTree:
        return self._known(self._tree)

    @staticmethod
    def _known(tree: ProviderTree | None) -> ProviderTree:
        if tree is None:
            raise NotRegistered(
                "this host has not registered at Placement yet", remedy="see /readyz for what Placement answers"
            )
        return tree
