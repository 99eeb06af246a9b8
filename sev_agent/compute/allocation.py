"""What an instance should hold in Placement: a pure function of its size and of whether it runs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal
from uuid import UUID

from sev_agent.sev.generation import RESOURCE_CLASS, Generation
from sev_agent.sev.holdings import Size

Resources = Mapping[str, int]

StoppedGuests = Literal["release", "hold"]


@dataclass(frozen=True, slots=True)
class ProviderTree:
    """Where a host's resources are counted: its root provider, and where each generation's slots are.

    That is a child for each generation, or the root itself in a tree of Nova's before 2025.2. ``offers`` are the
    resource classes that the root has inventory of; ``None`` where it has all that a guest holds.
    """

    root: UUID
    generations: Mapping[Generation, UUID]
    offers: frozenset[str] | None = None

    @property
    def providers(self) -> tuple[UUID, ...]:
        """The root, then all others, each once."""
        return tuple(dict.fromkeys((self.root, *self.generations.values())))


def desired(
    size: Size, generation: Generation, *, runs: bool, tree: ProviderTree, stopped_guests: StoppedGuests
) -> dict[UUID, Resources]:
    """The allocation that an encrypted instance should hold, by provider; empty where it should hold none.

    A running guest holds all of its size and one encryption slot. A stopped one keeps its disk, and with
    ``stopped_guests`` set to ``hold`` the rest too. Where the generation has no provider, the host lost it: the
    guest is counted on the root alone.
    """
    keeps_all = runs or stopped_guests == "hold"
    kept = size.resources if keeps_all else Size(vcpus=0, memory_mb=0, disk_gb=size.disk_gb).resources
    by_provider = {tree.root: {name: amount for name, amount in kept.items() if _has(tree, name)}}
    slots = tree.generations.get(generation)
    if keeps_all and slots is not None:
        by_provider.setdefault(slots, {})[RESOURCE_CLASS] = 1
    return {provider: amounts for provider, amounts in by_provider.items() if amounts}


def _has(tree: ProviderTree, resource_class: str) -> bool:
    return tree.offers is None or resource_class in tree.offers
