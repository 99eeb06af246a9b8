"""The allocations of one host's consumers: what is known to be held, and the writing of it."""

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from uuid import UUID

import structlog

from sev_agent.compute.allocation import ProviderTree, Resources
from sev_agent.compute.holding import Holding
from sev_agent.compute.instance_locks import InstanceLocks
from sev_agent.crash_points import CrashPoint, reached
from sev_agent.openstack.placement import Allocation, ConcurrentUpdate, Full, Placement, retry_conflicts
from sev_agent.sev.holdings import ConsumerType

log = structlog.stdlib.get_logger(__name__)


class Ledger:
    """Reads and writes what consumers hold of one provider tree; what they hold of others is left as it is.

    ``is_ours`` tells by a consumer's UUID and type whether it may be written at all: beside Nova most may not.
    """

    def __init__(self, placement: Placement, *, is_ours: Callable[[UUID, str], bool]) -> None:
        self._placement = placement
        self._is_ours = is_ours
        self._held: dict[UUID, Holding] = {}
        self._doubted: set[UUID] = set()
        self._watchers: list[set[UUID]] = []
        # A consumer is written by one at a time: who settles it must not undo a claim that was just made for it.
        self._locks = InstanceLocks()

    @property
    def held(self) -> Mapping[UUID, Holding]:
        """What was last written or read of each consumer."""
        return self._held

    def lock(self, uuid: UUID) -> asyncio.Lock:
        """To be held from the decision what ``uuid`` should hold until that is written."""
        return self._locks.of(uuid)

    def may_hold(self, uuid: UUID) -> bool:
        """Whether ``uuid`` was seen to hold anything, rightly or not."""
        return uuid in self._held or uuid in self._doubted

    def note(self, uuid: UUID, holding: Holding | None) -> None:
        """Remember what was read: ``None`` for nothing."""
        self._doubted.discard(uuid)
        if holding is None:
            self._held.pop(uuid, None)
        else:
            self._held[uuid] = holding

    def doubt(self, uuid: UUID) -> None:
        """Remember that ``uuid`` may hold something, and not what it should."""
        self._held.pop(uuid, None)
        self._doubted.add(uuid)

    @contextlib.contextmanager
    def watching(self) -> Iterator[set[UUID]]:
        """The consumers written while the block runs: what was read of them before is old."""
        written: set[UUID] = set()
        self._watchers.append(written)
        try:
            yield written
        finally:
            self._watchers = [watcher for watcher in self._watchers if watcher is not written]

    async def read(self, tree: ProviderTree) -> dict[UUID, dict[UUID, Resources]]:
        """What each consumer holds of the tree. One request for each provider."""
        held: dict[UUID, dict[UUID, Resources]] = {}
        for provider in tree.providers:
            _, allocations = await self._placement.provider_allocations(provider)
            for consumer, resources in allocations.items():
                held.setdefault(consumer, {})[provider] = resources
        return held

    async def type_of(self, uuid: UUID) -> str | None:
        """The consumer's type; ``None`` where it holds nothing any more."""
        allocation = await self._placement.allocation(uuid)
        return None if allocation is None else allocation.consumer_type

    async def write(self, uuid: UUID, holding: Holding, tree: ProviderTree, *, likely_new: bool = True) -> bool:
        """Have ``uuid`` hold ``holding`` of the tree. Whether Placement had it otherwise.

        ``likely_new`` says whether one that was not seen before holds nothing yet, as most do; else it is read first.
        Raises ``Full``; ``ConcurrentUpdate`` only if others write the same consumer again and again.
        """
        with self._writing(uuid):
            reached(CrashPoint.LEDGER_BEFORE_WRITE)
            written = await self._write(uuid, holding, tree, likely_new=likely_new)
            reached(CrashPoint.LEDGER_AFTER_WRITE)
            return written

    async def _write(self, uuid: UUID, holding: Holding, tree: ProviderTree, *, likely_new: bool) -> bool:
        try:
            # One request then does it.
            if likely_new and not self.may_hold(uuid):
                await self._placement.put_allocation(uuid, holding.allocation(None))
                self.note(uuid, holding)
                return True
        except ConcurrentUpdate:
            log.debug("ledger.consumer_exists", instance_uuid=str(uuid))

        async def replace_all() -> bool:
            present = await self._placement.allocation(uuid)
            if present is None:
                await self._placement.put_allocation(uuid, holding.allocation(None))
                return True
            if holding.consumer_type is ConsumerType.UNMANAGED and not self._is_ours(uuid, present.consumer_type):
                return False
            wanted = holding.allocation(present.consumer_generation)
            wanted = replace(wanted, resources=_elsewhere(present, tree) | dict(holding.resources))
            if present == wanted:
                return False
            await self._placement.put_allocation(uuid, wanted)
            return True

        changed = await retry_conflicts(replace_all)
        self.note(uuid, holding)
        return changed

    async def release(self, uuid: UUID, tree: ProviderTree) -> bool:
        """Have ``uuid`` hold nothing of the tree. Whether it held something, and was ours to release."""

        async def attempt() -> bool:
            present = await self._placement.allocation(uuid)
            if present is None or not self._is_ours(uuid, present.consumer_type):
                return False
            left = _elsewhere(present, tree)
            if left == present.resources:
                return False
            # Not DELETE: that would also remove what somebody claims for this consumer between the read and it.
            await self._placement.put_allocation(uuid, replace(present, resources=left))
            return True

        with self._writing(uuid):
            reached(CrashPoint.LEDGER_BEFORE_RELEASE)
            released = await retry_conflicts(attempt)
            reached(CrashPoint.LEDGER_AFTER_RELEASE)
            self.note(uuid, None)
        return released

    @contextlib.contextmanager
    def _writing(self, uuid: UUID) -> Iterator[None]:
        """Tell who watches, when it has ended: one that ends later still sets right itself what they note meanwhile."""
        try:
            yield
        except Full:
            raise  # nothing was written
        except BaseException:
            # It may have been carried out all the same: what was known of it does not hold any more.
            self.doubt(uuid)
            self._tell(uuid)
            raise
        self._tell(uuid)

    def _tell(self, uuid: UUID) -> None:
        for written in self._watchers:
            written.add(uuid)


def _elsewhere(allocation: Allocation, tree: ProviderTree) -> dict[UUID, Resources]:
    """What it holds of other trees: another host may have claimed it meanwhile."""
    return {provider: amounts for provider, amounts in allocation.resources.items() if provider not in tree.providers}
