"""Keeping one resource provider as it should be: each difference found, told, and unless on a dry run, mended."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol
from uuid import NAMESPACE_DNS, UUID, uuid5

import structlog

from sev_agent.compute.allocation import ProviderTree
from sev_agent.compute.drift import Kind, ProviderDifference
from sev_agent.compute.inventory import HostResources
from sev_agent.crash_points import CrashPoint, reached
from sev_agent.openstack.placement import Inventory, Placement, Provider, ProviderInUse, retry_conflicts

log = structlog.stdlib.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Established:
    """A host's tree, and what of it was not as it should be. No ``tree`` where a dry run found no root."""

    tree: ProviderTree | None
    differences: tuple[ProviderDifference, ...]


class Providers(Protocol):
    """A host's provider tree, in one of the two modes."""

    async def establish(self, resources: HostResources, *, dry_run: bool = False) -> Established:
        """Find the tree and keep it as this mode has to. A dry run only reads."""


class Upkeep:
    """One look over a host's providers. What it found gathers in ``differences``."""

    def __init__(self, placement: Placement, *, dry_run: bool) -> None:
        self._placement = placement
        self._dry_run = dry_run
        self._made: set[str] = set()
        self.differences: list[ProviderDifference] = []

    async def create(self, name: str, *, parent: UUID | None, inventories: Mapping[str, Inventory]) -> Provider | None:
        """The missing provider ``name``, made; ``None`` on a dry run."""
        self._found(name, Kind.PROVIDER_MISSING, {}, totals(inventories))
        if self._dry_run:
            return None
        # The name decides the identifier: a daemon that died between two steps finds its own provider again.
        uuid = uuid5(NAMESPACE_DNS, f"{name}.sev-agent")
        provider = await self._placement.create_provider(name, uuid=uuid, parent=parent)
        reached(CrashPoint.PROVIDER_AFTER_CREATE)
        self._made.add(name)
        log.info("placement.provider.created", provider=name, uuid=str(provider.uuid))
        return provider

    async def keep_inventories(self, provider: Provider, wanted: Mapping[str, Inventory]) -> None:
        """Make ``wanted`` all that the provider has."""

        async def mend() -> Mapping[str, Inventory]:
            generation, present = await self._placement.inventories(provider.uuid)
            if present != wanted and not self._dry_run:
                await self._placement.set_inventories(provider.uuid, generation, wanted)
                reached(CrashPoint.PROVIDER_AFTER_INVENTORY)
                log.info("placement.inventory.written", provider=provider.name, inventory=totals(wanted))
            return present

        found = await retry_conflicts(mend)
        if found != wanted:
            self._found(provider.name, Kind.INVENTORY, _changes(found, wanted), _changes(wanted, found))

    async def keep_traits(self, provider: Provider, *, have: frozenset[str], lack: frozenset[str]) -> None:
        """Give the provider the traits that it should ``have`` and take those that it should ``lack``.

        Traits that others gave the provider are theirs to keep.
        """

        async def mend() -> frozenset[str]:
            generation, present = await self._placement.traits(provider.uuid)
            wanted = (present | have) - lack
            if present != wanted and not self._dry_run:
                await self._placement.set_traits(provider.uuid, generation, wanted)
                reached(CrashPoint.PROVIDER_AFTER_TRAITS)
                log.info("placement.traits.written", provider=provider.name, traits=sorted(wanted ^ present))
            return present

        present = await retry_conflicts(mend)
        if lost := have - present:
            self._found(provider.name, Kind.TRAITS, {}, dict.fromkeys(sorted(lost), 1))
        if surplus := lack & present:
            self._found(provider.name, Kind.TRAITS, dict.fromkeys(sorted(surplus), 1), {})

    async def retire(self, provider: Provider, *, traits: frozenset[str]) -> bool:
        """Delete a provider that the host has no use for any more. Whether it is gone, or would be.

        While guests hold parts of it Placement does not let it go: then all of it is reserved and its ``traits`` are
        taken, so that nothing more is placed there, until a later look finds it free.
        """
        _, holders = await self._placement.provider_allocations(provider.uuid)
        if not holders:
            try:
                if not self._dry_run:
                    await self._placement.delete_provider(provider.uuid)
                    reached(CrashPoint.PROVIDER_AFTER_DELETE)
                    log.info("placement.provider.deleted", provider=provider.name, uuid=str(provider.uuid))
            except ProviderInUse as error:
                log.debug("placement.provider.claimed_meanwhile", provider=provider.name, error=str(error))
            else:
                self._found(provider.name, Kind.PROVIDER_STALE, {"guests": 0}, {})
                return True
        await retry_conflicts(lambda: self._reserve(provider))
        await self.keep_traits(provider, have=frozenset(), lack=traits)
        held_by = len(holders) or 1
        self._found(
            provider.name,
            Kind.PROVIDER_STALE,
            {"guests": held_by},
            {},
            error=f"the host has lost this generation, and {held_by} guests still hold slots of it: nothing more is"
            " placed there, and it is deleted once they are gone (delete these guests, or give the host its"
            " generation back)",
        )
        return False

    async def _reserve(self, provider: Provider) -> None:
        generation, present = await self._placement.inventories(provider.uuid)
        reserved = {name: replace(inventory, reserved=inventory.total) for name, inventory in present.items()}
        if present != reserved and not self._dry_run:
            await self._placement.set_inventories(provider.uuid, generation, reserved)
            reached(CrashPoint.PROVIDER_AFTER_RESERVE)
            log.info("placement.inventory.reserved", provider=provider.name, inventory=totals(reserved))

    def _found(
        self,
        provider: str,
        kind: Kind,
        held: Mapping[str, Any],
        wanted: Mapping[str, Any],
        *,
        error: str | None = None,
    ) -> None:
        # What a new provider is given is no difference of its own.
        if provider not in self._made:
            found = ProviderDifference(provider=provider, kind=kind, held=held, wanted=wanted, error=error)
            self.differences.append(found)


def totals(inventories: Mapping[str, Inventory]) -> dict[str, int]:
    return {resource_class: inventory.total for resource_class, inventory in inventories.items()}


def _changes(one: Mapping[str, Inventory], other: Mapping[str, Inventory]) -> dict[str, dict[str, int | float]]:
    """What ``one`` has and ``other`` has not so: by class, the fields that differ (all where it is missing there)."""
    return {
        name: {
            field: getattr(inventory, field)
            for field in ("total", "reserved", "min_unit", "max_unit", "step_size", "allocation_ratio")
            if name not in other or getattr(inventory, field) != getattr(other[name], field)
        }
        for name, inventory in one.items()
        if inventory != other.get(name)
    }
