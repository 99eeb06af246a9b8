"""What an instance should hold follows from its size and from whether it runs, and from nothing else."""

from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sev_agent.compute.allocation import ProviderTree, StoppedGuests, desired
from sev_agent.compute.holding import Terms, wanted
from sev_agent.compute.record import State
from sev_agent.hypervisor.domains import DomainState, Guest
from sev_agent.sev.generation import RESOURCE_CLASS, Generation
from sev_agent.sev.holdings import ConsumerType, Size
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
_novas_trees = st.builds(
    ProviderTree,
    st.just(ROOT),
    st.just({Generation.SEV: ROOT}),
    st.none() | st.frozensets(st.sampled_from(["VCPU", "MEMORY_MB", "DISK_GB", "PCPU"])),
)


def guest(state: DomainState, generation: Generation | None = Generation.SEV, *, is_novas: bool = False) -> Guest:
    return Guest(
        uuid=uuid4(),
        name="g",
        state=state,
        generation=generation,
        metadata=None,
        vcpus=3,
        memory_mb=128,
        is_novas=is_novas,
    )


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


@given(_sizes, st.booleans(), _policies, _novas_trees)
def test_slots_on_the_root(size: Size, runs: bool, policy: StoppedGuests, tree: ProviderTree) -> None:  # noqa: FBT001
    """In a tree of Nova's before 2025.2 the slot is on the root, beside only what that has inventory of."""
    held = desired(size, Generation.SEV, runs=runs, tree=tree, stopped_guests=policy)

    assert held.keys() <= {ROOT}
    amounts = held.get(ROOT, {})
    assert amounts.get(RESOURCE_CLASS, 0) == (1 if runs or policy == "hold" else 0)
    assert tree.offers is None or amounts.keys() - {RESOURCE_CLASS} <= tree.offers
    assert all(amounts.values())


@given(st.integers(0, 65_536), st.booleans())
def test_overhead(overhead: int, is_managed: bool) -> None:  # noqa: FBT001
    """What a guest takes beside its RAM is counted while it runs, whoever made it, and only then."""
    terms, running = Terms(overhead_mb=overhead), guest(DomainState.RUNNING)
    known = record(State.ACTIVE) if is_managed else None

    holding = wanted(known, running, TREE, terms)
    stopped = wanted(known, guest(DomainState.SHUTOFF), TREE, terms)

    assert holding is not None
    assert holding.resources[ROOT]["MEMORY_MB"] == (64 if is_managed else 128) + overhead
    assert stopped is None or "MEMORY_MB" not in stopped.resources[ROOT]


@pytest.mark.parametrize(("beside_nova", "counted"), [(True, False), (False, True)])
def test_guest_that_nova_made(*, beside_nova: bool, counted: bool) -> None:
    """Beside Nova its guests are its own to count; where it is gone, they are strangers that hold slots."""
    holding = wanted(None, guest(DomainState.RUNNING, is_novas=True), TREE, Terms(beside_nova=beside_nova))

    assert (holding is not None) is counted


@pytest.mark.parametrize("state", [State.ACTIVE, State.STOPPED])
@pytest.mark.parametrize(
    ("domain", "slots"),
    [(DomainState.RUNNING, 1), (DomainState.PAUSED, 1), (DomainState.SHUTOFF, 0), (DomainState.CRASHED, 1), (None, 0)],
)
def test_instance(state: State, domain: DomainState | None, slots: int) -> None:
    """An instance holds a slot exactly while libvirt runs its guest, whatever the record says."""
    holding = wanted(record(state), guest(domain) if domain else None, TREE, Terms())

    assert holding is not None
    assert holding.consumer_type is ConsumerType.INSTANCE
    assert (holding.project_id, holding.user_id) == ("project", "user")
    assert holding.resources.get(CHILD, {}).get(RESOURCE_CLASS, 0) == slots


def test_instance_without_a_project() -> None:
    """Placement wants a project and a user for everything."""
    nobody = record(instance=instance(project_id="", user_id=""))

    holding = wanted(nobody, None, TREE, Terms())

    assert holding is not None
    assert holding.project_id
    assert holding.user_id


@pytest.mark.parametrize("state", [None, State.ERROR, State.RESCHEDULED, State.DELETED])
def test_stranger(state: State | None) -> None:
    """An encrypted guest that is none of the instances holds by its own size, but no disk."""
    known = None if state is None else record(state)

    holding = wanted(known, guest(DomainState.RUNNING), TREE, Terms(stopped_guests="hold"))

    assert holding is not None
    assert holding.consumer_type is ConsumerType.UNMANAGED
    assert holding.resources == {ROOT: {"VCPU": 3, "MEMORY_MB": 128}, CHILD: {RESOURCE_CLASS: 1}}


@pytest.mark.parametrize("found", [None, guest(DomainState.SHUTOFF), guest(DomainState.RUNNING, None)])
def test_nothing(found: Guest | None) -> None:
    """No guest, one that is off, or one without encryption holds nothing."""
    assert wanted(None, found, TREE, Terms(stopped_guests="hold")) is None
