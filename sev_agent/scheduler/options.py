"""Where a guest could go: one look at Placement, shared by all requests of the same size at the same time."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from sev_agent.openstack.placement import Candidate, Candidates, Placement, Resources
from sev_agent.scheduler.demand import SLOT_GROUP, Demand
from sev_agent.scheduler.host_names import HostNames
from sev_agent.sev.generation import DISABLED_TRAIT, NODE_TYPE_TRAIT, RESOURCE_CLASS

_MAX_LOOKS: Final = 64
"""Sizes that are remembered. One that was forgotten is looked up again."""


@dataclass(slots=True, eq=False)
class Option:
    """One way to place a guest: what would be claimed on which host.

    ``free_slots`` falls as we claim; ``gone`` says that it cannot be claimed any more. All who share it see both.
    """

    host: str
    resources: Mapping[UUID, Resources]
    free_slots: int
    gone: bool = False

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Have it look one slot fuller to the others, while it is being claimed."""
        self.free_slots -= 1
        try:
            yield
        finally:
            self.free_slots += 1


@dataclass(frozen=True, slots=True, eq=False)
class Look:
    """What could take a guest when Placement was asked. ``begun`` is of the monotonic clock."""

    begun: float
    options: tuple[Option, ...]


class Options:
    """Asks Placement for hosts, at most ``limit`` of them.

    Requests of one size that come at the same time share one answer, and what one of them claims the others see. The
    claim alone decides, so an answer that has aged costs an attempt, and never a slot too many.
    """

    def __init__(self, placement: Placement, names: HostNames, *, limit: int) -> None:
        self._placement = placement
        self._names = names
        self._limit = limit
        self._looks: OrderedDict[Demand, _Asked] = OrderedDict()

    async def look(self, demand: Demand, *, since: float) -> Look:
        """A look that was begun at ``since`` or later. Raises what ``Placement`` raises."""
        asked = self._looks.get(demand)
        if asked is None or asked.begun < since or asked.failed:
            asked = self._begin(demand)
        # Who is cancelled does not take the answer from those who wait with it.
        return await asyncio.shield(asked.task)

    def _begin(self, demand: Demand) -> "_Asked":
        begun = time.monotonic()
        asked = _Asked(begun, asyncio.create_task(self._ask(demand, begun), name="options"))
        # An error that nobody waits for any more is no news: the next look tells it again.
        asked.task.add_done_callback(lambda task: task.cancelled() or task.exception())
        self._looks[demand] = asked
        self._looks.move_to_end(demand)
        if len(self._looks) > _MAX_LOOKS:
            self._looks.popitem(last=False)
        return asked

    async def _ask(self, demand: Demand, begun: float) -> Look:
        found = await self._placement.allocation_candidates(
            demand.groups,
            limit=self._limit,
            root_required={NODE_TYPE_TRAIT},
            root_forbidden={DISABLED_TRAIT},
        )
        names = await self._names.of_roots(_root(found, candidate) for candidate in found.candidates)
        return Look(
            begun,
            tuple(
                Option(names[root], candidate.resources, _free_slots(found, candidate))
                for candidate in found.candidates
                if (root := _root(found, candidate)) in names
            ),
        )


@dataclass(frozen=True, slots=True)
class _Asked:
    """A look that was begun, ended or not."""

    begun: float
    task: asyncio.Task[Look]

    @property
    def failed(self) -> bool:
        return self.task.done() and (self.task.cancelled() or self.task.exception() is not None)


def _slots_of(candidate: Candidate) -> UUID:
    return candidate.groups[SLOT_GROUP][0]


def _root(found: Candidates, candidate: Candidate) -> UUID:
    return found.providers[_slots_of(candidate)].root


def _free_slots(found: Candidates, candidate: Candidate) -> int:
    slots = found.providers[_slots_of(candidate)]
    return slots.capacity[RESOURCE_CLASS] - slots.used[RESOURCE_CLASS]
