"""The provider tree of a host with nova-compute: Nova's own, in which this agent only claims, and adds its trait."""

from uuid import UUID

from sev_agent.compute.allocation import ProviderTree
from sev_agent.compute.inventory import HostResources
from sev_agent.compute.provider_upkeep import Established, Upkeep
from sev_agent.errors import Unavailable
from sev_agent.openstack.placement import Placement, Provider
from sev_agent.sev.generation import NODE_TYPE_TRAIT, RESOURCE_CLASS, Generation


class NovaTreeMissing(Unavailable):
    """Nova has not registered this host, or offers no encryption slots of it."""

    code = "placement.nova_tree_missing"


class NovaTree:
    """Nova's root provider, named after the hypervisor's hostname, and wherever Nova keeps its slots.

    Before 2025.2 the slots are inventory of the root; since then of one child for each generation (nova,
    ``virt/libvirt/driver.py``). No inventory is ever written here, no provider made or deleted. ``node`` names the
    root where it is not the hostname that libvirt tells.
    """

    def __init__(self, placement: Placement, node: str | None) -> None:
        self._placement = placement
        self._node = node

    async def establish(self, resources: HostResources, *, dry_run: bool = False) -> Established:
        """Find Nova's tree as it is now. Raises ``NovaTreeMissing``."""
        node = self._node or resources.hostname
        root = await self._placement.find_provider(node)
        if root is None:
            raise NovaTreeMissing(
                f"Placement has no resource provider {node!r}: nova-compute has not registered this host yet",
                remedy="start nova-compute here, set placement.nova_node to the name it uses, or set placement.mode",
            )
        _, inventories = await self._placement.inventories(root.uuid)
        # Nova (before 2025.2) put the slots on the root. After its reshape none is left there.
        slots = {Generation.SEV: root.uuid} if RESOURCE_CLASS in inventories else await self._children(root)
        if not slots:
            raise NovaTreeMissing(
                f"Nova offers no {RESOURCE_CLASS} of {node!r}: it has found no memory encryption on this host",
                remedy="make nova-compute find it (see the log of its start, and num_memory_encrypted_guests in"
                " nova.conf), or set placement.mode to 'standalone' where no nova-compute runs",
            )
        upkeep = Upkeep(self._placement, dry_run=dry_run)
        await upkeep.keep_traits(root, have=frozenset({NODE_TYPE_TRAIT}), lack=frozenset())
        tree = ProviderTree(root=root.uuid, generations=slots, offers=frozenset(inventories))
        return Established(tree, tuple(upkeep.differences))

    async def _children(self, root: Provider) -> dict[Generation, UUID]:
        present = {provider.name: provider.uuid for provider in await self._placement.tree(root.uuid)}
        names = {generation: generation.provider_name(root.name) for generation in Generation}
        return {generation: present[name] for generation, name in names.items() if name in present}
