"""Which of the hosts that could take a guest is the best. Pure."""

import random
from collections.abc import Collection
from typing import Literal, Protocol, TypeAlias, TypeVar

Strategy: TypeAlias = Literal["spread", "pack"]


class Weighed(Protocol):
    """What is known of a host: how many slots of the asked generation it has left."""

    @property
    def free_slots(self) -> int: ...


W = TypeVar("W", bound=Weighed)


def ranking(strategy: Strategy, option: Weighed, *, chance: float) -> tuple[bool, int, float]:
    """The smaller, the better: by free slots, and by ``chance`` where they are equal.

    Schedulers that work at the same time would otherwise all run at the same host. One without a free slot is the last
    resort with either strategy: somebody else's claim may have been given back meanwhile.
    """
    is_full = option.free_slots <= 0
    return (is_full, option.free_slots if strategy == "pack" else -option.free_slots, chance)


def best_first(strategy: Strategy, options: Collection[W]) -> list[W]:
    """``options``, the best one first."""
    return sorted(options, key=lambda option: ranking(strategy, option, chance=random.random()))
