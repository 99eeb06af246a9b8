"""Which host a resource provider is: the name of its tree's root."""

import time
from collections.abc import Iterable
from typing import Final
from uuid import UUID

from sev_agent.openstack.placement import Placement
from sev_agent.sev.generation import NODE_TYPE_TRAIT

_MAX_AGE: Final = 60.0
"""Seconds for which names are believed: an operator may rename a provider."""


class HostNames:
    """The names of the hosts of this node type, read again when one is missing. Raises what ``Placement`` raises."""

    def __init__(self, placement: Placement) -> None:
        self._placement = placement
        self._names: dict[UUID, str] = {}
        self._read_at = float("-inf")

    async def of_roots(self, roots: Iterable[UUID]) -> dict[UUID, str]:
        """The name of each of ``roots``; without those that have left meanwhile."""
        wanted = set(roots)
        if wanted - self._names.keys() or time.monotonic() - self._read_at > _MAX_AGE:
            found = await self._placement.providers(required={NODE_TYPE_TRAIT})
            self._names = {provider.uuid: provider.name for provider in found}
            self._read_at = time.monotonic()
        return {root: self._names[root] for root in wanted & self._names.keys()}

    async def of_tree(self, providers: Iterable[UUID]) -> str | None:
        """The host whose tree the first of ``providers`` that still exists is in."""
        for provider in providers:
            if provider in self._names:
                return self._names[provider]
        for provider in providers:
            for member in await self._placement.tree(provider):
                if member.parent is None:
                    return member.name
        return None
