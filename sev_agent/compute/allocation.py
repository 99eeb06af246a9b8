"""What an instance should hold in Placement: a pure function of its size and of whether it runs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal
from uuid import UUID

from sev_agent.sev.generation import RESOURCE_CLASS, Generation

Resources = Mapping[str, int]

StoppedGuests = Literal["release", "hold"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """What an instance takes of its host. ``memory_mb`` in MiB, ``disk_gb`` in GiB."""

    vcpus: int
    memory_mb: int
    disk_gb: int


@dataclass(frozen=True, slots=True)
class ProviderTree:
    """Where a host's resources are counted: its root provider, and one child for each usable generation."""

    root: UUID
    generations: Mapping[Generation, UUID]


def desired(
    size: Size, generation: Generation, *, runs: bool, tree: ProviderTree, stopped_guests: StoppedGuests
) -> dict[UUID, Resources]:
    """The allocation that an encrypted instance should hold, by provider; empty where it should hold none.

    A running guest holds all of its size and one encryption slot. A stopped one keeps its disk, and with
    ``stopped_guests`` set to ``hold`` the rest too. Where the generation has no provider, the host lost it: the
    guest is counted on the root alone.
    """
    disk: Resources = {"DISK_GB": size.disk_gb} if size.disk_gb else {}
    if not runs and stopped_guests == "release":
        return {tree.root: disk} if disk else {}
    held: dict[UUID, Resources] = {tree.root: {"VCPU": size.vcpus, "MEMORY_MB": size.memory_mb, **disk}}
    slots = tree.generations.get(generation)
    if slots is not None:
        held[slots] = {RESOURCE_CLASS: 1}
    return held
