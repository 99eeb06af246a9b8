"""How many encrypted guests of each generation a host can run, and who says so."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from sev_agent.config import EncryptionSection
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """Where the slots of a generation are counted: by the kernel's key, by libvirt's number, and the operator's limit.

    SEV-ES and SEV-SNP share the ASIDs below those of SEV.
    """

    kernel_key: str
    libvirt: int | None
    limit: int | None


@dataclass(frozen=True, slots=True)
class Generations:
    """The generations that a host can run, with their slots, and those that it cannot, with the reason."""

    usable: Mapping[Generation, SlotTotal]
    unusable: Mapping[Generation, str]


def generations(capabilities: HostCapabilities, platform: Platform, settings: EncryptionSection) -> Generations:
    """What the kernel and libvirt both say can be run, as Nova's detection asks both; totals by ``SlotTotal``."""
    usable: dict[Generation, SlotTotal] = {}
    unusable: dict[Generation, str] = {}
    for generation in Generation:
        slots = _slots(_pool(generation, capabilities, settings), platform)
        why = _missing(generation, capabilities, platform) or _no_slot(slots)
        if why:
            unusable[generation] = why
        else:
            usable[generation] = slots
    return Generations(usable, unusable)


def _missing(generation: Generation, capabilities: HostCapabilities, platform: Platform) -> str:
    """What keeps the host from running ``generation``, or an empty text."""
    without_device = _unless(platform.sev_device is not False, _NO_DEVICE)
    match generation:
        case Generation.SEV:
            return _unless(platform.sev, _parameter("sev")) or without_device or _no_sev(capabilities)
        case Generation.SEV_ES:
            return (
                _unless(platform.sev_es, _parameter("sev_es"))
                or without_device
                or _no_sev(capabilities)
                or _unless(not platform.sev_snp, _EXCLUDED)
                or _unless(_numbers(capabilities.emulator_version) >= _QEMU_OF_ES, _old_qemu(capabilities))
            )
        case Generation.SEV_SNP:
            told = "sev-snp" in capabilities.sectypes
            return _unless(platform.sev_snp, _parameter("sev_snp")) or without_device or _unless(told, _NO_SECTYPE)


_QEMU_OF_ES: Final = (8, 0)
"""Older ones start SEV-ES guests that do not reboot; Nova draws the same line."""

_EXCLUDED: Final = "SEV-SNP is on, and the firmware's fix of CVE-2025-48514 lets a host run only one of the two"
_NO_DEVICE: Final = "there is no /dev/sev: the kernel's driver of the secure processor (module ccp) has not made it"
_NO_SECTYPE: Final = "libvirt offers no launch security 'sev-snp' (it needs libvirt 10.5 and QEMU 9.1)"


def _parameter(name: str) -> str:
    return f"the kernel's module kvm_amd has its parameter {name} off"


def _no_sev(capabilities: HostCapabilities) -> str:
    return _unless(capabilities.sev, "libvirt reports no SEV (virsh domcapabilities)")


def _old_qemu(capabilities: HostCapabilities) -> str:
    return f"QEMU {capabilities.emulator_version} is older than 8.0"


def _unless(condition: bool, reason: str) -> str:  # noqa: FBT001 - it reads as a sentence
    return "" if condition else reason


def _no_slot(slots: SlotTotal) -> str:
    if slots.total > 0:
        return ""
    if not slots.sources:
        return "nobody tells how many slots it has: neither the kernel (misc.capacity) nor libvirt, and no limit is set"
    return f"it has no slot, by {slots.ruled_by} (the BIOS setting of the lowest SEV ASID divides them)"


def _pool(generation: Generation, capabilities: HostCapabilities, settings: EncryptionSection) -> Pool:
    if generation is Generation.SEV:
        return Pool(kernel_key="sev", libvirt=capabilities.sev_max_guests, limit=settings.limit)
    return Pool(kernel_key="sev_es", libvirt=capabilities.sev_es_max_guests, limit=settings.es_limit)


def _slots(pool: Pool, platform: Platform) -> SlotTotal:
    sources: dict[str, int] = {}
    if pool.kernel_key in platform.misc_capacity:
        sources["kernel"] = platform.misc_capacity[pool.kernel_key]
    # libvirt takes its numbers from the processor's own CPUID, which no simulation reaches.
    if not platform.simulated and pool.libvirt is not None:
        sources["libvirt"] = pool.libvirt
    if pool.limit is not None:
        sources["configuration"] = pool.limit
    return SlotTotal(sources)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdecimal())
