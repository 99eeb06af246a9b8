"""A host's providers in Placement exactly as nova-compute lays them out, before and since 2025.2.

Names, inventories and traits are those that Nova's libvirt driver reports (nova, ``virt/libvirt/driver.py``,
``update_provider_tree``; its ``tests/functional/libvirt/test_report_cpu_traits.py`` asserts the slots). Since 2025.2
the root has neither slots nor traits of memory encryption.
"""

from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

import aiohttp

from sev_agent.openstack.placement import Allocation, Inventory, Placement, Provider
from sev_agent.sev.generation import NODE_TYPE_TRAIT, RESOURCE_CLASS, Generation

_HEADERS = {"X-Auth-Token": "admin", "OpenStack-API-Version": "placement 1.39"}
_COMPUTE = frozenset(
    {
        *("COMPUTE_NODE", "OWNER_NOVA", "COMPUTE_ACCELERATORS", "COMPUTE_DEVICE_TAGGING", "COMPUTE_RESCUE_BFV"),
        *("COMPUTE_IMAGE_TYPE_QCOW2", "COMPUTE_IMAGE_TYPE_RAW", "COMPUTE_TRUSTED_CERTS", "COMPUTE_VOLUME_EXTEND"),
        *("COMPUTE_NET_ATTACH_INTERFACE", "COMPUTE_VIOMMU_MODEL_VIRTIO", "HW_CPU_X86_SVM", "HW_CPU_X86_AESNI"),
    }
)
ROOT_INVENTORY = {
    "VCPU": Inventory(total=16, max_unit=16, allocation_ratio=4.0),
    "MEMORY_MB": Inventory(total=32768, reserved=512, max_unit=32768),
    "DISK_GB": Inventory(total=200, max_unit=200),
}
SLOTS = {RESOURCE_CLASS: Inventory(total=3, max_unit=1)}
FEW_SLOTS = {RESOURCE_CLASS: Inventory(total=2, max_unit=1)}


@dataclass(frozen=True)
class NovaHost:
    """One node of Nova's, with what Nova's instances hold of it."""

    node: str
    providers: dict[str, Provider]
    consumers: tuple[UUID, ...]
    aggregate: UUID
    slots: UUID
    """The provider of SEV's slots."""


class Nova:
    """nova-compute and nova-scheduler, as far as Placement sees them."""

    def __init__(self, placement: Placement, session: aiohttp.ClientSession, url: str) -> None:
        self._placement = placement
        self._session = session
        self._url = url

    async def register(self, node: str, *, with_children: bool) -> NovaHost:
        """The node's tree (with children as since 2025.2), in an aggregate, with an instance of each kind on it."""
        root = await self._placement.create_provider(node, uuid=uuid4())
        providers = {node: root}
        traits = {node: _COMPUTE | (frozenset() if with_children else {Generation.SEV.trait})}
        inventories = {node: ROOT_INVENTORY | ({} if with_children else SLOTS)}
        if with_children:
            for generation, slots in ((Generation.SEV, SLOTS), (Generation.SEV_ES, FEW_SLOTS)):
                name = generation.provider_name(node)
                providers[name] = await self._placement.create_provider(name, uuid=uuid4(), parent=root.uuid)
                traits[name], inventories[name] = frozenset({generation.trait}), slots
        gpu = f"{node}_pci_0000_81_00_0"
        providers[gpu] = await self._placement.create_provider(gpu, uuid=uuid4(), parent=root.uuid)
        traits[gpu], inventories[gpu] = (
            frozenset({"COMPUTE_MANAGED_PCI_DEVICE"}),
            {"VGPU": Inventory(total=4, max_unit=4)},
        )
        for name, provider in providers.items():
            generation_now = await self._placement.set_inventories(
                provider.uuid, provider.generation, inventories[name]
            )
            await self._placement.set_traits(provider.uuid, generation_now, traits[name])
        slots_of = providers[Generation.SEV.provider_name(node)].uuid if with_children else root.uuid
        aggregate = uuid4()
        await self._aggregate(root.uuid, aggregate)
        consumers = await self._instances(root.uuid, slots_of, providers[gpu].uuid)
        return NovaHost(node, providers, consumers, aggregate, slots_of)

    async def launch(self, host: NovaHost, consumer: UUID | None = None) -> UUID:
        """What nova-scheduler claims for an encrypted instance."""
        consumer = consumer or uuid4()
        root = host.providers[host.node].uuid
        await self._claim(consumer, _merge({root: {"VCPU": 1, "MEMORY_MB": 512}}, {host.slots: {RESOURCE_CLASS: 1}}))
        return consumer

    async def everything(self, host: NovaHost) -> dict[str, Any]:
        """All that Placement says of the host, as it says it, but for generations, our trait and our consumers."""
        told = await self.whole(host)
        kept = {str(consumer) for consumer in host.consumers}
        cleaned = {name: _without_generations(document) for name, document in told.items()}
        traits = cleaned[f"{host.node} traits"]["traits"]
        cleaned[f"{host.node} traits"]["traits"] = sorted(set(traits) - {NODE_TYPE_TRAIT})
        for name in host.providers:
            allocations = cleaned[f"{name} allocations"]["allocations"]
            cleaned[f"{name} allocations"]["allocations"] = {
                consumer: held for consumer, held in allocations.items() if consumer in kept
            }
        return cleaned

    async def whole(self, host: NovaHost) -> dict[str, Any]:
        """All that Placement says of the host, ours and generations too: a write to any of it would show."""
        told: dict[str, Any] = {}
        for name, provider in host.providers.items():
            base = f"/resource_providers/{provider.uuid}"
            told[name] = await self._get(base)
            for part in ("inventories", "traits", "aggregates", "allocations"):
                told[f"{name} {part}"] = await self._get(f"{base}/{part}")
        told["tree"] = await self._get(f"/resource_providers?in_tree={host.providers[host.node].uuid}")
        for consumer in host.consumers:
            told[str(consumer)] = await self._get(f"/allocations/{consumer}")
        return told

    async def _instances(self, root: UUID, slots: UUID, gpu: UUID) -> tuple[UUID, ...]:
        encrypted, plain, migration = uuid4(), uuid4(), uuid4()
        size = {root: {"VCPU": 2, "MEMORY_MB": 1024, "DISK_GB": 10}}
        await self._claim(encrypted, _merge(size, {slots: {RESOURCE_CLASS: 1}}))
        await self._claim(plain, _merge(size, {gpu: {"VGPU": 1}}))
        await self._claim(migration, size, kind="MIGRATION")
        return encrypted, plain, migration

    async def _claim(self, consumer: UUID, resources: dict[UUID, dict[str, int]], kind: str = "INSTANCE") -> None:
        project, user = uuid4().hex, uuid4().hex
        claimed = Allocation(resources=resources, project_id=project, user_id=user, consumer_type=kind)
        await self._placement.put_allocation(consumer, claimed)

    async def _aggregate(self, provider: UUID, aggregate: UUID) -> None:
        path = f"/resource_providers/{provider}"
        generation = (await self._get(path))["generation"]
        body = {"aggregates": [str(aggregate)], "resource_provider_generation": generation}
        async with self._session.put(f"{self._url}{path}/aggregates", json=body, headers=_HEADERS) as answer:
            assert answer.status == 200, await answer.text()

    async def consumers(self, host: NovaHost) -> set[UUID]:
        """Whoever holds something of the host, Nova's instances and ours."""
        told = [
            await self._get(f"/resource_providers/{provider.uuid}/allocations") for provider in host.providers.values()
        ]
        return {UUID(consumer) for answer in told for consumer in answer["allocations"]}

    async def _get(self, path: str) -> Any:
        async with self._session.get(f"{self._url}{path}", headers=_HEADERS) as answer:
            assert answer.status == 200, await answer.text()
            return await answer.json()


def _merge(*parts: dict[UUID, dict[str, int]]) -> dict[UUID, dict[str, int]]:
    merged: dict[UUID, dict[str, int]] = {}
    for part in parts:
        for provider, amounts in part.items():
            merged[provider] = merged.get(provider, {}) | amounts
    return merged


def _without_generations(document: Any) -> Any:
    """Every write to a provider raises its generation, a claim too: that is Placement's own count, not Nova's data."""
    match document:
        case dict():
            kept = {name: value for name, value in document.items() if not name.endswith("generation")}
            return {name: _without_generations(value) for name, value in sorted(kept.items())}
        case list():
            return sorted((_without_generations(value) for value in document), key=repr)
        case _:
            return document
