"""What Placement counts: providers, their inventory, allocations from it, and candidates for new ones."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from uuid import UUID

Resources = Mapping[str, int]
"""Amounts by resource class."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Provider:
    """A resource provider; a root has no ``parent``. ``generation`` rises with every change, claims included."""

    uuid: UUID
    name: str
    generation: int
    parent: UUID | None
    root: UUID


@dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    """What a provider has of one resource class. Usable are ``(total - reserved) * allocation_ratio``."""

    total: int
    reserved: int = 0
    min_unit: int = 1
    max_unit: int
    step_size: int = 1
    allocation_ratio: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocation:
    """What one consumer holds, by provider. ``consumer_generation`` ``None`` says that the consumer must be new."""

    resources: Mapping[UUID, Resources]
    project_id: str
    user_id: str
    consumer_type: str
    consumer_generation: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestGroup:
    """Resources that one provider must give, with the traits that it must and must not have."""

    resources: Resources = field(default_factory=dict)
    required: frozenset[str] = frozenset()
    forbidden: frozenset[str] = frozenset()
    in_tree: UUID | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One way to satisfy a request; ``groups`` tells by which providers each group of it would be satisfied."""

    resources: Mapping[UUID, Resources]
    groups: Mapping[str, tuple[UUID, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderSummary:
    """A provider that takes part in candidates: what it can give in all, what of it is taken, its traits."""

    root: UUID
    parent: UUID | None
    capacity: Resources
    used: Resources
    traits: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidates:
    candidates: tuple[Candidate, ...]
    providers: Mapping[UUID, ProviderSummary]
