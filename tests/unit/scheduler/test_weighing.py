"""Which of several hosts is the best."""

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from sev_agent.scheduler.weighing import best_first


@dataclass(frozen=True)
class Host:
    name: str
    free_slots: int


HOSTS = st.lists(
    st.builds(Host, st.uuids().map(str), st.integers(min_value=-3, max_value=50)),
    min_size=1,
    unique_by=lambda h: h.name,
)


@given(HOSTS)
def test_spread(hosts: list[Host]) -> None:
    """The host with the most free slots comes first, and every host comes once."""
    ordered = best_first("spread", hosts)
    assert [host.free_slots for host in ordered] == sorted((host.free_slots for host in hosts), reverse=True)
    assert set(ordered) == set(hosts)


@given(HOSTS)
def test_pack(hosts: list[Host]) -> None:
    """Of those with a free slot, the one with the fewest comes first; those without one come last."""
    ordered = [host.free_slots for host in best_first("pack", hosts)]
    usable = [free for free in ordered if free > 0]
    assert ordered[: len(usable)] == sorted(usable)


def test_ties() -> None:
    """Chance decides between equal hosts: each of three comes first now and then."""
    hosts = [Host(name, 4) for name in "abc"]
    for strategy in ("spread", "pack"):
        firsts = {best_first(strategy, hosts)[0].name for _ in range(200)}
        assert firsts == {"a", "b", "c"}
