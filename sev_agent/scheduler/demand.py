"""What a request needs of a host, and which hosts it may go to. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from sev_agent.errors import InvalidRequest
from sev_agent.openstack.placement_values import RequestGroup
from sev_agent.schema import Attempt, Instance, RescheduleArguments, ScheduleArguments
from sev_agent.sev.generation import RESOURCE_CLASS, Generation
from sev_agent.sev.holdings import Size
from sev_agent.sev.rules import FLAVOR_MODEL

MAX_HOSTS: Final = 3
"""How many hosts try to build one instance before it is given up."""

SLOT_GROUP: Final = "_SLOT"
"""The suffix of the group that asks for the slot: it may be on the root, as Nova had it, or on a child."""


@dataclass(frozen=True, slots=True)
class Demand:
    """What one guest takes of its host: equal ones are answered by the same look at Placement."""

    size: Size
    generation: Generation

    @property
    def slot(self) -> RequestGroup:
        return RequestGroup(resources={RESOURCE_CLASS: 1}, required=frozenset({self.generation.trait}))

    @property
    def groups(self) -> Mapping[str, RequestGroup]:
        """The query for candidates."""
        return {"": RequestGroup(resources=self.size.resources), SLOT_GROUP: self.slot}


@dataclass(frozen=True, slots=True)
class Request:
    """One instance that needs a host. ``forced_host`` is the only one it may go to."""

    instance: Instance
    demand: Demand
    forced_host: str | None
    tried: tuple[Attempt, ...]

    @classmethod
    def of(cls, arguments: ScheduleArguments, *, overhead_mb: int) -> "Request":
        """What was asked; a guest takes ``overhead_mb`` MiB beside RAM and page tables. Raises ``InvalidRequest``."""
        flavor = arguments.instance.flavor
        size = Size.of_guest(flavor.vcpus, flavor.memory_mb, flavor.root_gb, overhead_mb=overhead_mb)
        generation = arguments.generation or _generation(flavor.extra_specs)
        tried = arguments.tried if isinstance(arguments, RescheduleArguments) else ()
        return cls(arguments.instance, Demand(size, generation), arguments.host, tried)

    def may_use(self, host: str) -> bool:
        """Whether ``host`` is still to be tried."""
        is_asked_for = self.forced_host is None or host == self.forced_host
        return is_asked_for and all(attempt.host != host for attempt in self.tried)


def _generation(extra_specs: Mapping[str, str]) -> Generation:
    word = extra_specs.get(FLAVOR_MODEL, Generation.SEV.value)
    try:
        return Generation(word)
    except ValueError:
        raise InvalidRequest(
            f"{word!r} is no generation of memory encryption",
            field=f"instance.flavor.extra_specs.{FLAVOR_MODEL}",
            remedy=f"use one of {', '.join(Generation)}",
        ) from None
