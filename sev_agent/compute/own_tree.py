"""The provider tree of a host without nova-compute: this agent's own, made and reshaped as the host changes."""

from uuid import UUID

from sev_agent.compute.allocation import ProviderTree
from sev_agent.compute.inventory import HostResources
from sev_agent.compute.provider_upkeep import Established, Upkeep
from sev_agent.openstack.placement import Inventory, Placement, Provider
from sev_agent.sev.generation import NODE_TYPE_TRAIT, RESOURCE_CLASS, Generation


class OwnTree:
    """A root, and a child for each usable generation, in Nova's names and shape."""

    def __init__(self, placement: Placement, host: str) -> None:
        self._placement = placement
        self._host = host

    async def establish(self, resources: HostResources, *, dry_run: bool = False) -> Established:
        """Make Placement hold exactly ``resources``. A host that can encrypt nothing is of no node type any more."""
        upkeep = Upkeep(self._placement, dry_run=dry_run)
        root = await self._placement.find_provider(self._host)
        root = root or await upkeep.create(self._host, parent=None, inventories=resources.root)
        if root is None:
            return Established(None, tuple(upkeep.differences))
        node_type = frozenset({NODE_TYPE_TRAIT})
        is_sev = bool(resources.slots)
        await upkeep.keep_inventories(root, resources.root)
        await upkeep.keep_traits(
            root, have=node_type if is_sev else frozenset(), lack=frozenset() if is_sev else node_type
        )
        present = {provider.name: provider for provider in await self._placement.tree(root.uuid)}
        children: dict[Generation, UUID] = {}
        for generation in Generation:
            name = generation.provider_name(self._host)
            child = await self._keep_child(upkeep, root, generation, present.get(name), resources)
            if child is not None:
                children[generation] = child.uuid
        return Established(ProviderTree(root=root.uuid, generations=children), tuple(upkeep.differences))

    async def _keep_child(
        self, upkeep: Upkeep, root: Provider, generation: Generation, child: Provider | None, resources: HostResources
    ) -> Provider | None:
        """The provider of ``generation``'s slots; also one that the host lost, while guests hold slots of it."""
        slots = resources.slots.get(generation)
        if slots is None:
            lost = frozenset({generation.trait})
            return None if child is None or await upkeep.retire(child, traits=lost) else child
        inventories = {RESOURCE_CLASS: Inventory(total=slots.total, max_unit=1)}
        if child is None:
            name = generation.provider_name(self._host)
            child = await upkeep.create(name, parent=root.uuid, inventories=inventories)
        if child is not None:
            await upkeep.keep_inventories(child, inventories)
            await upkeep.keep_traits(child, have=frozenset({generation.trait}), lack=frozenset())
        return child
