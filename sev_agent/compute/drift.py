"""What Placement counted otherwise than it should: the report of a comparison. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any
from uuid import UUID

from sev_agent.compute.allocation import Resources
from sev_agent.compute.holding import Holding
from sev_agent.errors import SevAgentError


class Kind(StrEnum):
    """What is wrong: with a consumer's allocation (the first four), or with one of the host's providers."""

    MISSING = "missing"
    SURPLUS = "surplus"
    DOUBLED = "doubled"
    WRONG_SIZE = "wrong_size"
    PROVIDER_MISSING = "provider_missing"
    PROVIDER_STALE = "provider_stale"
    INVENTORY = "inventory"
    TRAITS = "traits"


@dataclass(frozen=True, slots=True)
class Difference:
    """One consumer whose allocation was not what it should be."""

    consumer: UUID
    held: Mapping[UUID, Resources]
    wanted: Mapping[UUID, Resources]

    @property
    def kind(self) -> Kind:
        if not self.held:
            return Kind.MISSING
        if not self.wanted:
            return Kind.SURPLUS
        extra = {name for provider, amounts in self.held.items() if provider not in self.wanted for name in amounts}
        is_doubled = any(name in extra for amounts in self.wanted.values() for name in amounts)
        return Kind.DOUBLED if is_doubled else Kind.WRONG_SIZE


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The consumers that were compared: those with a difference, and what each other holds rightly, if anything.

    ``holders`` are those that hold anything.
    """

    wrong: Mapping[UUID, Difference]
    right: Mapping[UUID, Holding | None]
    holders: frozenset[UUID]


def compare(
    held: Mapping[UUID, Mapping[UUID, Resources]], wanted: Mapping[UUID, Holding], consumers: Iterable[UUID]
) -> Comparison:
    """What each of ``consumers`` holds of the host's providers beside what it should."""
    wrong: dict[UUID, Difference] = {}
    right: dict[UUID, Holding | None] = {}
    for uuid in consumers:
        holding = wanted.get(uuid)
        difference = Difference(uuid, held.get(uuid, {}), holding.resources if holding is not None else {})
        if difference.held == difference.wanted:
            right[uuid] = holding
        else:
            wrong[uuid] = difference
    return Comparison(wrong=wrong, right=right, holders=frozenset(held))


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderDifference:
    """One provider that was not as it should be; ``error`` says why it could not be repaired."""

    provider: str
    kind: Kind
    held: Mapping[str, Any]
    wanted: Mapping[str, Any]
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconciliation:
    """What one comparison found. A dry run has repaired nothing, any other all but what has an error.

    ``unrepaired`` is what Placement refused, by consumer: a guest that libvirt runs beyond what the host has, for one.
    """

    differences: tuple[Difference, ...] = ()
    unrepaired: Mapping[UUID, SevAgentError]
    providers: tuple[ProviderDifference, ...] = ()
    dry_run: bool = False

    @property
    def inventory_changed(self) -> bool:
        return bool(self.providers)

    @property
    def is_clean(self) -> bool:
        return not self.providers and not self.differences

    def findings(self) -> list[Any]:
        """Every difference, as JSON can carry it: ``subject`` is the consumer's UUID or the provider's name."""
        about_providers = [
            {
                "subject": found.provider,
                "kind": found.kind.value,
                "held": dict(found.held),
                "wanted": dict(found.wanted),
                "repaired": not self.dry_run and found.error is None,
                "error": found.error,
            }
            for found in self.providers
        ]
        about_consumers = [
            {
                "subject": str(found.consumer),
                "kind": found.kind.value,
                "held": _plain(found.held),
                "wanted": _plain(found.wanted),
                "repaired": not self.dry_run and found.consumer not in self.unrepaired,
                "error": str(self.unrepaired[found.consumer]) if found.consumer in self.unrepaired else None,
            }
            for found in self.differences
        ]
        return about_providers + about_consumers


def _plain(by_provider: Mapping[UUID, Resources]) -> dict[str, dict[str, int]]:
    return {str(provider): dict(amounts) for provider, amounts in by_provider.items()}
