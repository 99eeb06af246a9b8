"""What an instance should hold follows from its size and from whether it runs, and from nothing else."""

from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sev_agent.compute.allocation import ProviderTree, Size, StoppedGuests, desired
from sev_agent.compute.holding import ConsumerType, wanted
from sev_agent.compute.record import State
from sev_agent.hypervisor.domains import DomainState, Guest
from sev_agent.sev.generation import RESOURCE_CLASS, Generation
from tests.requests import instance, record

ROOT, CHILD = uuid4(), uuid4()
TREE = ProviderTree(ROOT, {Generation.SEV: CHILD})
SIZE = Size(vcpus=2, memory_mb=64, disk_gb=1)

_sizes = st.builds(Size, vcpus=st.integers(1, 255), memory_mb=st.integers(64, 2**24), disk_gb=st.integers(0, 2**16))
_policies: st.SearchStrategy[StoppedGuests] = st.sampled_from(["release", "hold"])
_trees = st.builds(
    ProviderTree,
    st.just(ROOT),
    st.sets(st.sampled_from(Generation)).map(lambda kinds: {kind: UUID(int=n) for n, kind in enumerate(sorted(kinds))}),
)


def guest(state: DomainState, generation: Generation | None = Generation.SEV) -> Guest:
    return Guest(uuid=uuid4(), name="g", state=state, generation=generation, metadata=None, vcpus=3, memory_mb=128)


@pytest.mark.parametrize(
    ("runs", "policy", "expected"),
    [
        (True, "release", {ROOT: {"VCPU": 2, "MEMORY_MB": 64, "DISK_GB": 1}, CHILD: {RESOURCE_CLASS: 1}}),
        (True, "hold", {ROOT: {"VCPU": 2, "MEMORY_MB": 64, "DISK_GB": 1}, CHILD: {RESOURCE_CLASS: 1}}),
        (False, "hold", {ROOT: {"VCPU": 2, "MEMORY_MB": 64, "DISK_GB": 1}, CHILD: {RESOURCE_CLASS: 1}}),
        (False, "release", {ROOT: {"DISK_GB": 1}}),
    ],
)
def test_by_state(policy: StoppedGuests, expected: dict[UUID, dict[str, int]], *, runs: bool) -> None:
    """A guest that runs holds all of its size and one slot; one that is stopped what the policy says."""
    assert desired(SIZE, Generation.SEV, runs=runs, tree=TREE, stopped_guests=policy) == expected


@given(_sizes, st.sampled_from(Generation), st.booleans(), _policies, _trees)
def test_any_size(size: Size, generation: Generation, runs: bool, policy: StoppedGuests, tree: ProviderTree) -> None:  # noqa: FBT001
    """No amount is zero, no slot is counted twice, and nothing is held of another generation's slots."""
    held = desired(size, generation, runs=runs, tree=tree, stopped_guests=policy)

    assert all(amount > 0 for amounts in held.values() for amount in amounts.values())
    assert all(held.values())
    slots = {provider for provider, amounts in held.items() if RESOURCE_CLASS in amounts}
    expected = (
        {tree.generations[generation]} if generation in tree.generations and (runs or policy == "hold") else set()
    )
    assert slots == expected
    assert held.keys() <= {tree.root, *slots}


@pytest.mark.parametrize("state", [State.ACTIVE, State.STOPPED])
@pytest.mark.parametrize(
    ("domain", "slots"),
    [(DomainState.RUNNING, 1), (DomainState.PAUSED, 1), (DomainState.SHUTOFF, 0), (DomainState.CRASHED, 0), (None, 0)],
)
def test_instance(state: State, domain: DomainState | None, slots: int) -> None:
    """An instance holds a slot exactly while libvirt runs its guest, whatever the record says."""
    holding = wanted(record(state), guest(domain) if domain else None, TREE, stopped_guests="release")

    assert holding is not None
    assert holding.consumer_type is ConsumerType.INSTANCE
    assert (holding.project_id, holding.user_id) == ("project", "user")
    assert holding.resources.get(CHILD, {}).get(RESOURCE_CLASS, 0) == slots


def test_instance_without_a_project() -> None:
    """Placement wants a project and a user for everything."""
    nobody = record(instance=instance(project_id="", user_id=""))

    holding = wanted(nobody, None, TREE, stopped_guests="release")

    assert holding is not None
    assert holding.project_id
    assert holding.user_id


@pytest.mark.parametrize("state", [None, State.ERROR, State.DELETED])
def test_stranger(state: State | None) -> None:
    """An encrypted guest that is none of the instances holds by its own size, but no disk."""
    known = None if state is None else record(state)

    holding = wanted(known, guest(DomainState.RUNNING), TREE, stopped_guests="hold")

    assert holding is not None
    assert holding.consumer_type is ConsumerType.UNMANAGED
    assert holding.resources == {ROOT: {"VCPU": 3, "MEMORY_MB": 128}, CHILD: {RESOURCE_CLASS: 1}}


@pytest.mark.parametrize("found", [None, guest(DomainState.SHUTOFF), guest(DomainState.RUNNING, None)])
def test_nothing(found: Guest | None) -> None:
    """No guest, one that is off, or one without encryption holds nothing."""
    assert wanted(None, found, TREE, stopped_guests="hold") is None
