"""How many encrypted guests of each generation a host can run, and who says so."""

from collections.abc import Mapping
from dataclasses import dataclass

from sev_agent.hypervisor.capabilities import HostCapabilities
from sev_agent.hypervisor.platform import Platform
from sev_agent.sev.generation import Generation


@dataclass(frozen=True, slots=True)
class SlotTotal:
    """The slots of one generation: each source's number, of which the smallest rules."""

    sources: Mapping[str, int]

    @property
    def total(self) -> int:
        return min(self.sources.values(), default=0)

    @property
    def ruled_by(self) -> str:
        """The source whose number is the total."""
        return min(self.sources, key=lambda source: self.sources[source], default="nothing")


def slot_totals(capabilities: HostCapabilities, platform: Platform, limit: int | None) -> dict[Generation, SlotTotal]:
    """The usable generations with their totals: kernel (``misc.capacity``), libvirt (``maxGuests``), configuration.

    A generation needs both the kernel's module parameter and libvirt's word, as Nova's detection does.
    """
    if not (platform.sev and capabilities.sev):
        return {}
    sources: dict[str, int] = {}
    if "sev" in platform.misc_capacity:
        sources["kernel"] = platform.misc_capacity["sev"]
    # libvirt takes maxGuests from the processor's own CPUID, which no simulation reaches.
    if not platform.simulated and capabilities.sev_max_guests is not None:
        sources["libvirt"] = capabilities.sev_max_guests
    if limit is not None:
        sources["configuration"] = limit
    slots = SlotTotal(sources)
    return {Generation.SEV: slots} if slots.total > 0 else {}
