"""What differs is found, and called by its name."""

import json
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sev_agent.compute.allocation import Resources
from sev_agent.compute.drift import Difference, Kind, ProviderDifference, Reconciliation, compare
from sev_agent.compute.holding import Holding
from sev_agent.openstack.placement import Full
from sev_agent.sev.generation import RESOURCE_CLASS
from sev_agent.sev.holdings import ConsumerType

ROOT, CHILD, OTHER = uuid4(), uuid4(), uuid4()
WHOLE: dict[UUID, Resources] = {ROOT: {"VCPU": 2, "DISK_GB": 1}, CHILD: {RESOURCE_CLASS: 1}}

_trees = st.dictionaries(
    st.sampled_from([ROOT, CHILD, OTHER]),
    st.dictionaries(st.sampled_from(["VCPU", "DISK_GB", RESOURCE_CLASS]), st.integers(1, 9), min_size=1),
)
_consumers = st.integers(0, 5).map(lambda number: UUID(int=number))
_held = st.dictionaries(_consumers, _trees.filter(bool))
_wanted = st.dictionaries(_consumers, _trees.filter(bool))


def holding(resources: dict[UUID, Resources]) -> Holding:
    return Holding(resources=resources, consumer_type=ConsumerType.INSTANCE, project_id="p", user_id="u")


@pytest.mark.parametrize(
    ("held", "wanted", "kind"),
    [
        ({}, WHOLE, Kind.MISSING),
        (WHOLE, {}, Kind.SURPLUS),
        (WHOLE | {OTHER: {RESOURCE_CLASS: 1}}, WHOLE, Kind.DOUBLED),
        ({ROOT: WHOLE[ROOT], OTHER: {RESOURCE_CLASS: 1}}, WHOLE, Kind.DOUBLED),
        (WHOLE | {ROOT: {"VCPU": 1, "DISK_GB": 1}}, WHOLE, Kind.WRONG_SIZE),
        ({ROOT: WHOLE[ROOT]}, WHOLE, Kind.WRONG_SIZE),
        (WHOLE, {ROOT: {"DISK_GB": 1}}, Kind.WRONG_SIZE),
    ],
)
def test_kinds(held: dict[UUID, Resources], wanted: dict[UUID, Resources], kind: Kind) -> None:
    """A guest that has stopped holds too much; doubled is what is taken of two providers for one need."""
    assert Difference(uuid4(), held, wanted).kind is kind


@given(_held, _wanted, st.sets(_consumers))
def test_compare(
    held: dict[UUID, dict[UUID, Resources]], wanted: dict[UUID, dict[UUID, Resources]], consumers: set[UUID]
) -> None:
    """Each consumer is either right, with what it should hold, or has a difference; no other is judged."""
    holdings = {uuid: holding(resources) for uuid, resources in wanted.items()}

    compared = compare(held, holdings, consumers)

    assert compared.right.keys() | compared.wrong.keys() == consumers
    assert not compared.right.keys() & compared.wrong.keys()
    assert all(held.get(uuid, {}) == wanted.get(uuid, {}) for uuid in compared.right)
    assert all(compared.right[uuid] == holdings.get(uuid) for uuid in compared.right)
    assert all(held.get(uuid, {}) != wanted.get(uuid, {}) for uuid in compared.wrong)
    assert compared.holders == held.keys()


@given(_held, _wanted)
def test_kind_of_any_difference(
    held: dict[UUID, dict[UUID, Resources]], wanted: dict[UUID, dict[UUID, Resources]]
) -> None:
    """Missing, surplus and the rest exclude each other, whatever differs."""
    compared = compare(held, {uuid: holding(wanted[uuid]) for uuid in wanted}, held.keys() | wanted.keys())

    for uuid, found in compared.wrong.items():
        assert (found.kind is Kind.MISSING) == (uuid not in held)
        assert (found.kind is Kind.SURPLUS) == (uuid not in wanted)


def test_findings() -> None:
    """Every difference is told with what became of it, in what JSON can carry."""
    repaired, refused = uuid4(), uuid4()
    stale = ProviderDifference(provider="h_amd_sev", kind=Kind.PROVIDER_STALE, held={"guests": 1}, wanted={}, error="x")
    outcome = Reconciliation(
        differences=(Difference(repaired, WHOLE, {}), Difference(refused, {}, WHOLE)),
        unrepaired={refused: Full("no slot")},
        providers=(stale,),
    )

    findings = outcome.findings()

    assert json.loads(json.dumps(findings)) == findings
    assert [(found["subject"], found["repaired"], found["error"]) for found in findings] == [
        ("h_amd_sev", False, "x"),
        (str(repaired), True, None),
        (str(refused), False, "no slot"),
    ]
    assert not outcome.is_clean


def test_dry_run_has_repaired_nothing() -> None:
    """After a dry run, nothing is told as repaired."""
    outcome = Reconciliation(differences=(Difference(uuid4(), WHOLE, {}),), unrepaired={}, dry_run=True)

    assert not any(found["repaired"] for found in outcome.findings())
