"""The host's own providers in Placement: their inventories and traits, kept as they should be."""

import asyncio
import shutil
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from uuid import NAMESPACE_DNS, UUID, uuid5

import structlog

from sev_agent.compute.allocation import ProviderTree
from sev_agent.compute.slots import SlotTotal
from sev_agent.config import PlacementSection
from sev_agent.hypervisor.capabilities import HostCapabilities
from sev_agent.openstack.placement import Inventory, Placement, Provider, retry_conflicts
from sev_agent.sev.generation import NODE_TYPE_TRAIT, RESOURCE_CLASS, Generation

log = structlog.stdlib.get_logger(__name__)

_GIB = 1024**3


@dataclass(frozen=True, slots=True)
class HostResources:
    """What the host has to give: the root's inventory, and the slots of each usable generation."""

    root: Mapping[str, Inventory]
    slots: Mapping[Generation, SlotTotal]


class HostProviders:
    """The provider tree of a host without nova-compute: a root, and a child for each usable generation."""

    def __init__(self, placement: Placement, host: str) -> None:
        self._placement = placement
        self._host = host

    async def establish(self, resources: HostResources) -> tuple[ProviderTree, bool]:
        """Make Placement hold exactly ``resources``; tell the tree, and whether anything had to be written."""
        root, changed = await self._provider(self._host, parent=None)
        changed |= await self._fill(root, resources.root, {NODE_TYPE_TRAIT})
        children: dict[Generation, UUID] = {}
        for generation, slots in resources.slots.items():
            child, created = await self._provider(generation.provider_name(self._host), parent=root.uuid)
            inventory = {RESOURCE_CLASS: Inventory(total=slots.total, max_unit=1)}
            changed |= created | await self._fill(child, inventory, {generation.trait})
            children[generation] = child.uuid
        return ProviderTree(root=root.uuid, generations=children), changed

    async def _provider(self, name: str, *, parent: UUID | None) -> tuple[Provider, bool]:
        found = await self._placement.find_provider(name)
        if found is not None:
            return found, False
        # The name decides the identifier: a daemon that died between two steps finds its own provider again.
        uuid = uuid5(NAMESPACE_DNS, f"{name}.sev-agent")
        provider = await self._placement.create_provider(name, uuid=uuid, parent=parent)
        log.info("placement.provider.created", provider=name, uuid=str(provider.uuid))
        return provider, True

    async def _fill(self, provider: Provider, inventories: Mapping[str, Inventory], traits: set[str]) -> bool:
        async def write_inventories() -> bool:
            generation, present = await self._placement.inventories(provider.uuid)
            if present == inventories:
                return False
            await self._placement.set_inventories(provider.uuid, generation, inventories)
            log.info("placement.inventory.written", provider=provider.name, inventory=_totals(inventories))
            return True

        async def write_traits() -> bool:
            # Traits that others gave the provider are theirs to keep.
            generation, present = await self._placement.traits(provider.uuid)
            if traits <= present:
                return False
            await self._placement.set_traits(provider.uuid, generation, present | traits)
            log.info("placement.traits.written", provider=provider.name, traits=sorted(traits))
            return True

        steps: tuple[Callable[[], Awaitable[bool]], ...] = (write_inventories, write_traits)
        written = [await retry_conflicts(step) for step in steps]
        return any(written)


async def host_resources(
    capabilities: HostCapabilities, slots: Mapping[Generation, SlotTotal], state_dir: Path, settings: PlacementSection
) -> HostResources:
    """What a host with ``capabilities`` offers, its disk being that of ``state_dir``."""
    disk = await asyncio.to_thread(shutil.disk_usage, state_dir)
    root = {
        "VCPU": _whole(capabilities.cpus, settings.reserved_host_cpus, settings.cpu_allocation_ratio),
        # Encrypted guests are pinned: memory cannot be promised twice.
        "MEMORY_MB": _whole(capabilities.memory_mb, settings.reserved_host_memory_mb, 1.0),
        "DISK_GB": _whole(disk.total // _GIB, settings.reserved_host_disk_gb, 1.0),
    }
    return HostResources(root=root, slots=slots)


def _whole(total: int, reserved: int, ratio: float) -> Inventory:
    # Placement takes no reserve above the total, and no total below one.
    total = max(total, 1)
    return Inventory(total=total, reserved=min(reserved, total), max_unit=total, allocation_ratio=ratio)


def _totals(inventories: Mapping[str, Inventory]) -> dict[str, int]:
    return {resource_class: inventory.total for resource_class, inventory in inventories.items()}
