"""All hosts as the scheduler sees them: counted to explain a refusal, and in full for whoever asks."""

import asyncio
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from sev_agent.openstack.placement import (
    Inventory,
    Placement,
    PlacementRefused,
    Provider,
    ProviderNotFound,
    ProviderSummary,
    RequestGroup,
)
from sev_agent.scheduler.aliveness import Aliveness
from sev_agent.scheduler.demand import SLOT_GROUP, Request
from sev_agent.scheduler.explanation import Counts, Stage
from sev_agent.sev.generation import DISABLED_TRAIT, NODE_TYPE_TRAIT, RESOURCE_CLASS, Generation

_AT_ONCE: Final = 8
"""Requests to Placement at a time, for the whole table."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotPool:
    """The encryption slots of one generation on one host."""

    used: int
    limit: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HostView:
    """One host. ``ram_free_mb`` is MiB, ``disk_free_gb`` GiB; vCPUs are counted with the host's allocation ratio."""

    name: str
    is_sev: bool
    enabled: bool
    alive: bool
    slots: Mapping[Generation, SlotPool]
    ram_free_mb: int
    vcpus_free: int
    disk_free_gb: int

    @property
    def mem_encryption_used_num(self) -> int:
        return sum(pool.used for pool in self.slots.values())

    @property
    def limit(self) -> int:
        return sum(pool.limit for pool in self.slots.values())


class Fleet:
    """Looks at Placement and the broker. Raises what ``Placement`` raises, and ``BrokerUnavailable``."""

    def __init__(self, placement: Placement, aliveness: Aliveness, *, max_candidates: int) -> None:
        self._placement = placement
        self._aliveness = aliveness
        self._max_candidates = max_candidates

    async def counts(self, request: Request) -> Counts:
        """How many hosts are left after each condition of ``request``: five requests, however many hosts there are."""
        demand = request.demand
        everybody = await self._placement.providers()
        of_type = await self._placement.providers(required={NODE_TYPE_TRAIT})
        enabled = await self._placement.providers(required={NODE_TYPE_TRAIT}, forbidden={DISABLED_TRAIT})
        with_slot = await self._trees({SLOT_GROUP: demand.slot})
        complete = await self._trees(demand.groups)
        hosts = {
            provider.uuid: provider.name
            for provider in everybody
            if provider.parent is None and request.forced_host in {None, provider.name}
        }
        alive = await self._aliveness.among(hosts[provider.uuid] for provider in enabled if provider.uuid in hosts)
        meets: Mapping[Stage, Iterable[UUID]] = {
            Stage.KNOWN: hosts,
            Stage.OF_NODE_TYPE: (provider.uuid for provider in of_type),
            Stage.ENABLED: (provider.uuid for provider in enabled),
            Stage.ALIVE: (uuid for uuid, name in hosts.items() if name in alive),
            Stage.FREE_SLOT: with_slot,
            Stage.ENOUGH_RAM: complete.keys() | _with_room(with_slot, "MEMORY_MB", demand.size.memory_mb),
            Stage.ENOUGH_DISK: complete.keys() | _with_room(with_slot, "DISK_GB", demand.size.disk_gb),
            # Last, for it is no sum alone: one guest may not have more vCPUs than its host has processors.
            Stage.ENOUGH_VCPUS: complete,
            Stage.NOT_TRIED: (uuid for uuid, name in hosts.items() if request.may_use(name)),
        }
        counts: dict[Stage, int] = {}
        left = set(hosts)
        for stage in Stage:
            left &= set(meets[stage])
            counts[stage] = len(left)
        return counts

    async def _trees(self, groups: Mapping[str, RequestGroup]) -> dict[UUID, ProviderSummary]:
        """The roots of this node type whose trees can give ``groups``."""
        found = await self._placement.allocation_candidates(
            groups, limit=self._max_candidates, root_required={NODE_TYPE_TRAIT}, root_forbidden={DISABLED_TRAIT}
        )
        roots = {
            found.providers[provider].root
            for candidate in found.candidates
            for provider in candidate.groups[SLOT_GROUP]
        }
        return {root: found.providers[root] for root in roots}

    async def hosts(self) -> list[HostView]:
        """Every host that offers processors to guests, by name, also those that are no place for encrypted ones."""
        everybody = await self._placement.providers()
        generations = await self._generations()
        of_type = {provider.uuid for provider in await self._placement.providers(required={NODE_TYPE_TRAIT})}
        disabled = {provider.uuid for provider in await self._placement.providers(required={DISABLED_TRAIT})}
        alive = await self._aliveness.among(provider.name for provider in everybody if provider.parent is None)
        gate = asyncio.Semaphore(_AT_ONCE)

        async def look(provider: Provider) -> tuple[UUID, _Amounts]:
            async with gate:
                return provider.uuid, await self._amounts(provider.uuid)

        amounts = dict(await asyncio.gather(*(look(provider) for provider in everybody)))
        return [
            HostView(
                name=root.name,
                is_sev=root.uuid in of_type,
                enabled=root.uuid not in disabled,
                alive=root.name in alive,
                slots=_slots(root, everybody, amounts, generations),
                ram_free_mb=amounts[root.uuid].free("MEMORY_MB"),
                vcpus_free=amounts[root.uuid].free("VCPU"),
                disk_free_gb=amounts[root.uuid].free("DISK_GB"),
            )
            for root in sorted(everybody, key=lambda provider: provider.name)
            if root.parent is None and "VCPU" in amounts[root.uuid].inventories
        ]

    async def _generations(self) -> dict[UUID, Generation]:
        """Which generation's slots a provider has."""
        found: dict[UUID, Generation] = {}
        for generation in Generation:
            with suppress(PlacementRefused):  # an old Placement does not know the trait, so nobody has it
                found |= {
                    provider.uuid: generation
                    for provider in await self._placement.providers(required={generation.trait})
                }
        return found

    async def _amounts(self, provider: UUID) -> "_Amounts":
        try:
            _, inventories = await self._placement.inventories(provider)
            return _Amounts(inventories, await self._placement.usages(provider))
        except ProviderNotFound:
            return _Amounts({}, {})


@dataclass(frozen=True, slots=True)
class _Amounts:
    """What one provider has, and what of it is taken."""

    inventories: Mapping[str, Inventory]
    used: Mapping[str, int]

    def capacity(self, resource_class: str) -> int:
        inventory = self.inventories.get(resource_class)
        return int((inventory.total - inventory.reserved) * inventory.allocation_ratio) if inventory else 0

    def free(self, resource_class: str) -> int:
        return self.capacity(resource_class) - self.used.get(resource_class, 0)


def _slots(
    root: Provider,
    everybody: Iterable[Provider],
    amounts: Mapping[UUID, _Amounts],
    generations: Mapping[UUID, Generation],
) -> dict[Generation, SlotPool]:
    """The host's pools of slots, by generation; Nova once had the only one on the root itself."""
    pools = {
        generations[provider.uuid]: amounts[provider.uuid]
        for provider in everybody
        if provider.root == root.uuid
        and provider.uuid in generations
        and RESOURCE_CLASS in amounts[provider.uuid].inventories
    }
    return {
        generation: SlotPool(used=pool.used.get(RESOURCE_CLASS, 0), limit=pool.capacity(RESOURCE_CLASS))
        for generation, pool in sorted(pools.items(), key=lambda item: list(Generation).index(item[0]))
    }


def _with_room(trees: Mapping[UUID, ProviderSummary], resource_class: str, amount: int) -> set[UUID]:
    return {
        root
        for root, summary in trees.items()
        if summary.capacity.get(resource_class, 0) - summary.used.get(resource_class, 0) >= amount
    }
