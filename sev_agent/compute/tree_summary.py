"""All that Placement counts of one provider tree, told in one read."""

from collections.abc import Mapping
from typing import Final
from uuid import UUID

from sev_agent.openstack.placement import Placement, ProviderSummary, RequestGroup
from sev_agent.sev.generation import RESOURCE_CLASS

_PROBES: Final = ("DISK_GB", "VCPU", "MEMORY_MB", RESOURCE_CLASS)


class TreeSummary:
    """Asks for capacity, usage and traits of a tree's providers.

    Their generations would not do to see a change: the deletion of an allocation raises none. Placement only tells of a
    tree that could give something: where all disk is given out, the next look asks for another resource.
    """

    def __init__(self, placement: Placement) -> None:
        self._placement = placement
        self._probe = 0

    async def of(self, root: UUID) -> Mapping[UUID, ProviderSummary]:
        """The tree below ``root``, by provider; nothing where that cannot be told."""
        any_at_all = RequestGroup(resources={_PROBES[self._probe]: 1}, in_tree=root)
        counted = (await self._placement.allocation_candidates({"": any_at_all}, limit=1)).providers
        if not counted:
            self._probe = (self._probe + 1) % len(_PROBES)
        return counted
