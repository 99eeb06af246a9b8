"""Placement's documents at microversion 1.39, checked, and the values that they stand for."""

from collections.abc import Collection, Mapping
from typing import Any
from uuid import UUID

from pydantic import BaseModel, Field, NonNegativeInt, PositiveInt

from sev_agent.openstack.exchange import DictOf, ListOf, Response
from sev_agent.openstack.placement_values import (
    Allocation,
    Candidate,
    Candidates,
    Inventory,
    Provider,
    ProviderSummary,
    RequestGroup,
)

Amounts = DictOf[str, NonNegativeInt]


class ProviderDocument(BaseModel):
    uuid: UUID
    name: str
    generation: NonNegativeInt
    parent_provider_uuid: UUID | None
    root_provider_uuid: UUID

    def value(self) -> Provider:
        return Provider(
            uuid=self.uuid,
            name=self.name,
            generation=self.generation,
            parent=self.parent_provider_uuid,
            root=self.root_provider_uuid,
        )


class ProvidersDocument(BaseModel):
    resource_providers: ListOf[ProviderDocument]


class InventoryDocument(BaseModel):
    total: PositiveInt
    reserved: NonNegativeInt
    min_unit: PositiveInt
    max_unit: PositiveInt
    step_size: PositiveInt
    allocation_ratio: float = Field(gt=0)


class InventoriesDocument(BaseModel):
    resource_provider_generation: NonNegativeInt
    inventories: DictOf[str, InventoryDocument]

    def value(self) -> tuple[int, dict[str, Inventory]]:
        found = {name: Inventory(**document.model_dump()) for name, document in self.inventories.items()}
        return self.resource_provider_generation, found


class TraitsDocument(BaseModel):
    resource_provider_generation: NonNegativeInt
    traits: ListOf[str]


class UsagesDocument(BaseModel):
    usages: Amounts


class _ConsumerResources(BaseModel):
    resources: Amounts


class ProviderAllocationsDocument(BaseModel):
    resource_provider_generation: NonNegativeInt
    allocations: DictOf[UUID, _ConsumerResources]

    def value(self) -> tuple[int, dict[UUID, dict[str, int]]]:
        held = {consumer: document.resources for consumer, document in self.allocations.items()}
        return self.resource_provider_generation, held


class AllocationDocument(BaseModel):
    """The fields beside ``allocations`` are absent exactly when that is empty: such a consumer does not exist."""

    allocations: DictOf[UUID, _ConsumerResources]
    project_id: str = ""
    user_id: str = ""
    consumer_type: str = "unknown"
    consumer_generation: NonNegativeInt | None = None

    def value(self) -> Allocation | None:
        if not self.allocations:
            return None
        return Allocation(
            resources={provider: document.resources for provider, document in self.allocations.items()},
            project_id=self.project_id,
            user_id=self.user_id,
            consumer_type=self.consumer_type,
            consumer_generation=self.consumer_generation,
        )


def allocation_body(allocation: Allocation) -> dict[str, Any]:
    """The document of a claim; with no resources, of a release."""
    return {
        "allocations": {
            str(provider): {"resources": dict(resources)} for provider, resources in allocation.resources.items()
        },
        "project_id": allocation.project_id,
        "user_id": allocation.user_id,
        "consumer_type": allocation.consumer_type,
        "consumer_generation": allocation.consumer_generation,
    }


class _CandidateDocument(BaseModel):
    allocations: DictOf[UUID, _ConsumerResources]
    mappings: DictOf[str, ListOf[UUID]]

    def value(self) -> Candidate:
        return Candidate(
            resources={provider: document.resources for provider, document in self.allocations.items()},
            groups={group: tuple(providers) for group, providers in self.mappings.items()},
        )


class _SummaryAmount(BaseModel):
    capacity: NonNegativeInt
    used: NonNegativeInt


class _SummaryDocument(BaseModel):
    root_provider_uuid: UUID
    parent_provider_uuid: UUID | None
    resources: DictOf[str, _SummaryAmount]
    traits: ListOf[str]

    def value(self) -> ProviderSummary:
        return ProviderSummary(
            root=self.root_provider_uuid,
            parent=self.parent_provider_uuid,
            capacity={name: amount.capacity for name, amount in self.resources.items()},
            used={name: amount.used for name, amount in self.resources.items()},
            traits=frozenset(self.traits),
        )


class CandidatesDocument(BaseModel):
    allocation_requests: ListOf[_CandidateDocument]
    provider_summaries: DictOf[UUID, _SummaryDocument]

    def value(self) -> Candidates:
        return Candidates(
            candidates=tuple(document.value() for document in self.allocation_requests),
            providers={provider: document.value() for provider, document in self.provider_summaries.items()},
        )


def candidates_query(groups: Mapping[str, RequestGroup], limit: int) -> dict[str, str]:
    """The parameters of a query for candidates. The key of a group is its suffix, empty for the one without."""
    query = {"limit": str(limit)}
    for suffix, group in groups.items():
        if group.resources:
            query[f"resources{suffix}"] = ",".join(f"{name}:{amount}" for name, amount in group.resources.items())
        if traits := traits_query(group.required, group.forbidden):
            query[f"required{suffix}"] = traits
        if group.in_tree is not None:
            query[f"in_tree{suffix}"] = str(group.in_tree)
    if sum(1 for suffix in groups if suffix) > 1:
        query["group_policy"] = "none"
    return query


def traits_query(required: Collection[str], forbidden: Collection[str]) -> str:
    """Traits as a parameter has them, those that must not be there with an exclamation mark."""
    return ",".join([*sorted(required), *(f"!{trait}" for trait in sorted(forbidden))])


class ErrorDetail(BaseModel):
    detail: str
    code: str = "placement.undefined_code"


class _ErrorsDocument(BaseModel):
    errors: ListOf[ErrorDetail] = Field(min_length=1)


def error_of(response: Response) -> ErrorDetail:
    """What Placement says about a failure. Raises ``BadAnswer`` when it is not Placement that speaks here."""
    return response.parse(_ErrorsDocument).errors[0]
