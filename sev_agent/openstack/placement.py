"""Placement, the book of what every host has and what is taken of it. One microversion, 1.39."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import suppress
from typing import Any, Final, TypeVar
from uuid import UUID

import aiohttp

from sev_agent.config import ServiceSection
from sev_agent.errors import Conflict, Exhausted, InvalidRequest, NotFound, SevAgentError
from sev_agent.openstack import placement_wire as wire
from sev_agent.openstack.client import ServiceClient
from sev_agent.openstack.exchange import RequestObserver, Response, ignore_request
from sev_agent.openstack.identity import Identity
from sev_agent.openstack.placement_values import (
    Allocation,
    Candidate,
    Candidates,
    Inventory,
    Provider,
    ProviderSummary,
    RequestGroup,
    Resources,
)

__all__ = [
    "Allocation",
    "Candidate",
    "Candidates",
    "ConcurrentUpdate",
    "Full",
    "Inventory",
    "InventoryInUse",
    "NameTaken",
    "Placement",
    "PlacementRefused",
    "Provider",
    "ProviderInUse",
    "ProviderNotFound",
    "ProviderSummary",
    "RequestGroup",
    "Resources",
    "retry_conflicts",
]

MICROVERSION: Final = "1.39"

_PROVIDERS = "/resource_providers"
_CUSTOM = "CUSTOM_"
_MAX_DETAIL: Final = 1000
"""Characters of what Placement says against a request that go on into records, notifications and logs."""

T = TypeVar("T")


class ConcurrentUpdate(Conflict):
    """Somebody changed the provider or the consumer since it was read."""

    code = "placement.concurrent_update"
    retryable = True


class Full(Exhausted):
    """The provider has not enough left of a resource class, or none of it at all."""

    code = "placement.full"


class ProviderNotFound(NotFound):
    """Placement has no such resource provider."""

    code = "placement.provider_not_found"


class ProviderInUse(Conflict):
    """A provider that has allocations or children cannot be deleted."""

    code = "placement.provider_in_use"


class InventoryInUse(Conflict):
    """Inventory that consumers hold a part of cannot be removed."""

    code = "placement.inventory_in_use"


class NameTaken(Conflict):
    """A provider of this name exists, in another place or under another UUID."""

    code = "placement.name_taken"


class PlacementRefused(InvalidRequest):
    """Placement understood the request, and it can never succeed as it is."""

    code = "placement.refused"


class Placement:
    """The placement service. ``generation`` arguments are those that the provider had when it was read.

    Every method raises ``ServiceUnavailable``, ``BadAnswer``, ``PlacementRefused`` and what the identity raises.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        identity: Identity,
        settings: ServiceSection,
        *,
        on_request: RequestObserver = ignore_request,
    ) -> None:
        headers = {
            "OpenStack-API-Version": f"placement {MICROVERSION}",
            # Without Keystone (auth_strategy noauth2) Placement takes the user's name for the token. A token of
            # Keystone's takes this one's place.
            "X-Auth-Token": "admin",
        }
        self._client = ServiceClient(
            session,
            identity,
            name="placement",
            service_type="placement",
            settings=settings,
            headers=headers,
            on_request=on_request,
        )

    async def providers(
        self, *, required: Collection[str] = (), forbidden: Collection[str] = ()
    ) -> tuple[Provider, ...]:
        """All providers that have every trait in ``required`` and none in ``forbidden``.

        Raises ``PlacementRefused`` where Placement knows no such trait.
        """
        traits = wire.traits_query(required, forbidden)
        return await self._providers({"required": traits} if traits else {})

    async def ensure_trait(self, name: str) -> None:
        """Make Placement know a custom trait, so that it can be asked for before any provider has it."""
        await self._send("PUT", f"/traits/{name}", accepted={201, 204})

    async def find_provider(self, name: str) -> Provider | None:
        found = await self._providers({"name": name})
        return found[0] if found else None

    async def tree(self, root: UUID) -> tuple[Provider, ...]:
        """All providers of the tree that ``root`` is in; empty when there is none."""
        return await self._providers({"in_tree": str(root)})

    async def create_provider(self, name: str, *, uuid: UUID, parent: UUID | None = None) -> Provider:
        """A new provider, or the one that has this name and parent already, which may have another UUID.

        Raises ``NameTaken`` when another provider stands in its way, ``PlacementRefused`` (no such parent).
        """
        body = {"name": name, "uuid": str(uuid)} | ({"parent_provider_uuid": str(parent)} if parent else {})
        response = await self._send("POST", _PROVIDERS, json=body, accepted={200, 409})
        if response.status == 200:
            return response.parse(wire.ProviderDocument).value()
        existing = await self.find_provider(name)
        if existing is None:
            raise NameTaken(
                f"Placement can neither create provider {name!r} with UUID {uuid} nor find it:"
                f" {wire.error_of(response).detail[:_MAX_DETAIL]}",
                remedy="look for another name under this UUID with 'openstack resource provider show'",
            )
        if existing.parent != parent:
            raise NameTaken(
                f"Placement has a provider {name!r} already, {existing.uuid}, whose parent is {existing.parent} and not"
                f" {parent}",
                remedy="delete it if it is a remnant, or give the host another name",
            )
        return existing

    async def delete_provider(self, uuid: UUID) -> None:
        """Remove a provider; one that is gone already is a success. Raises ``ProviderInUse``."""
        with suppress(ProviderNotFound):
            await self._send("DELETE", _path(uuid), accepted={204})

    async def inventories(self, uuid: UUID) -> tuple[int, dict[str, Inventory]]:
        """The provider's generation, and its inventory by resource class. Raises ``ProviderNotFound``."""
        response = await self._send("GET", _path(uuid, "inventories"), accepted={200})
        return response.parse(wire.InventoriesDocument).value()

    async def set_inventories(self, uuid: UUID, generation: int, inventories: Mapping[str, Inventory]) -> int:
        """Replace all of a provider's inventory; returns the new generation.

        Raises ``ConcurrentUpdate``, ``InventoryInUse``, ``ProviderNotFound``.
        """
        documents = {name: _inventory_body(inventory) for name, inventory in inventories.items()}
        body = {"resource_provider_generation": generation, "inventories": documents}
        response = await self._send("PUT", _path(uuid, "inventories"), json=body, accepted={200})
        return response.parse(wire.InventoriesDocument).resource_provider_generation

    async def traits(self, uuid: UUID) -> tuple[int, frozenset[str]]:
        """The provider's generation and its traits. Raises ``ProviderNotFound``."""
        response = await self._send("GET", _path(uuid, "traits"), accepted={200})
        document = response.parse(wire.TraitsDocument)
        return document.resource_provider_generation, frozenset(document.traits)

    async def set_traits(self, uuid: UUID, generation: int, traits: Collection[str]) -> int:
        """Replace all of a provider's traits, creating custom ones first; returns the new generation.

        Raises ``ConcurrentUpdate``, ``ProviderNotFound``.
        """
        for trait in sorted(traits):
            if trait.startswith(_CUSTOM):
                await self.ensure_trait(trait)
        body = {"resource_provider_generation": generation, "traits": sorted(traits)}
        response = await self._send("PUT", _path(uuid, "traits"), json=body, accepted={200})
        return response.parse(wire.TraitsDocument).resource_provider_generation

    async def usages(self, uuid: UUID) -> dict[str, int]:
        """What is taken of each resource class of a provider. Raises ``ProviderNotFound``."""
        response = await self._send("GET", _path(uuid, "usages"), accepted={200})
        return response.parse(wire.UsagesDocument).usages

    async def provider_allocations(self, uuid: UUID) -> tuple[int, dict[UUID, dict[str, int]]]:
        """The provider's generation, and what each consumer holds of it. Raises ``ProviderNotFound``."""
        response = await self._send("GET", _path(uuid, "allocations"), accepted={200})
        return response.parse(wire.ProviderAllocationsDocument).value()

    async def allocation(self, consumer: UUID) -> Allocation | None:
        """What ``consumer`` holds of all providers."""
        response = await self._send("GET", f"/allocations/{consumer}", accepted={200})
        return response.parse(wire.AllocationDocument).value()

    async def put_allocation(self, consumer: UUID, allocation: Allocation) -> None:
        """Replace what ``consumer`` holds, all of it or nothing.

        Raises ``Full``, ``ConcurrentUpdate`` (also when the consumer should be new and is not), ``PlacementRefused``
        (a provider or a resource class that does not exist).
        """
        body = wire.allocation_body(allocation)
        await self._send("PUT", f"/allocations/{consumer}", json=body, accepted={204})

    async def allocation_candidates(
        self,
        groups: Mapping[str, RequestGroup],
        *,
        limit: int = 100,
        root_required: Collection[str] = (),
        root_forbidden: Collection[str] = (),
    ) -> Candidates:
        """Where the groups could be claimed, at most ``limit`` ways. Keys are suffixes, empty for the plain group.

        The root of each tree must have all traits in ``root_required`` and none in ``root_forbidden``.
        """
        query = wire.candidates_query(groups, limit)
        if traits := wire.traits_query(root_required, root_forbidden):
            query["root_required"] = traits
        response = await self._send("GET", "/allocation_candidates", params=query, accepted={200})
        return response.parse(wire.CandidatesDocument).value()

    async def _providers(self, params: Mapping[str, str]) -> tuple[Provider, ...]:
        response = await self._send("GET", _PROVIDERS, params=params, accepted={200})
        return tuple(document.value() for document in response.parse(wire.ProvidersDocument).resource_providers)

    async def _send(
        self,
        method: str,
        path: str,
        *,
        accepted: Collection[int],
        json: Any = None,
        params: Mapping[str, str] | None = None,
    ) -> Response:
        explained = {400, 404, 409}
        response = await self._client.request(
            method, path, json=json, params=params, accepted=explained.union(accepted)
        )
        if response.status in accepted:
            return response
        raise _failure(f"{method} {path}", response)


async def retry_conflicts(operation: Callable[[], Awaitable[T]], *, attempts: int = 8) -> T:
    """Do ``operation``, which must read what it changes, until nobody else changes it at the same time.

    Pauses grow from some 10 ms to at most 1 s, so eight attempts take three seconds at the very most. Raises the last
    ``ConcurrentUpdate``.
    """
    for attempt in range(attempts - 1):
        try:
            return await operation()
        except ConcurrentUpdate:
            await asyncio.sleep(random.uniform(0.5, 1.5) * min(0.01 * 2**attempt, 0.67))
    return await operation()


def _path(uuid: UUID, part: str = "") -> str:
    return f"{_PROVIDERS}/{uuid}/{part}".rstrip("/")


def _inventory_body(inventory: Inventory) -> dict[str, int | float]:
    return {
        "total": inventory.total,
        "reserved": inventory.reserved,
        "min_unit": inventory.min_unit,
        "max_unit": inventory.max_unit,
        "step_size": inventory.step_size,
        "allocation_ratio": inventory.allocation_ratio,
    }


def _failure(what: str, response: Response) -> SevAgentError:
    error = wire.error_of(response)
    text = f"Placement answered {response.status} to {what}: {' '.join(error.detail[:_MAX_DETAIL].split())}"
    match response.status, error.code:
        case 404, _:
            return ProviderNotFound(text)
        case 409, "placement.concurrent_update":
            return ConcurrentUpdate(text)
        case 409, "placement.inventory.inuse":
            return InventoryInUse(text, remedy="move or delete the guests that hold it")
        case 409, "placement.resource_provider.inuse" | "placement.resource_provider.cannot_delete_parent":
            return ProviderInUse(text, remedy="move or delete the guests that hold it, and delete its children first")
        case 409, _ if "Unable to allocate inventory" in error.detail:
            return Full(text, remedy="use another host, or free a slot")
        case _:
            return PlacementRefused(text)
