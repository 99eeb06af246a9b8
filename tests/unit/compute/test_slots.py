"""How many slots a host has: the smallest number rules, and it is known who said it."""

from dataclasses import replace

import pytest

from sev_agent.compute.slots import SlotTotal, slot_totals
from sev_agent.hypervisor.capabilities import HostCapabilities
from sev_agent.hypervisor.platform import Platform
from sev_agent.sev.generation import Generation

CAPABILITIES = HostCapabilities(
    sev=True,
    sev_max_guests=10,
    sev_es_max_guests=5,
    cbitpos=47,
    reduced_phys_bits=1,
    sectypes=frozenset({"sev"}),
    machine="pc-q35-10.0",
    libvirt_version="11.3.0",
    emulator_version="10.0.2",
    hostname="node1",
    cpus=8,
    memory_mb=16384,
)
PLATFORM = Platform(
    sev=True, sev_es=True, sev_snp=False, misc_capacity={"sev": 20, "sev_es": 5}, misc_current={}, simulated=False
)


@pytest.mark.parametrize(
    ("kernel", "libvirt", "limit", "total", "ruled_by"),
    [
        (20, 10, None, 10, "libvirt"),
        (7, 10, None, 7, "kernel"),
        (20, 10, 3, 3, "configuration"),
        (20, 10, 50, 10, "libvirt"),
        (None, 10, None, 10, "libvirt"),
        (20, None, None, 20, "kernel"),
        (None, None, 4, 4, "configuration"),
    ],
)
def test_smallest_rules(kernel: int | None, libvirt: int | None, limit: int | None, total: int, ruled_by: str) -> None:
    """The total is the smallest of what kernel, libvirt and configuration say, and names whose it is."""
    platform = replace(PLATFORM, misc_capacity={} if kernel is None else {"sev": kernel})

    slots = slot_totals(replace(CAPABILITIES, sev_max_guests=libvirt), platform, limit)[Generation.SEV]

    assert (slots.total, slots.ruled_by) == (total, ruled_by)


@pytest.mark.parametrize(
    ("capabilities", "platform"),
    [
        (replace(CAPABILITIES, sev=False), PLATFORM),
        (CAPABILITIES, replace(PLATFORM, sev=False)),
        (replace(CAPABILITIES, sev_max_guests=0), PLATFORM),
        (replace(CAPABILITIES, sev_max_guests=None), replace(PLATFORM, misc_capacity={})),
    ],
)
def test_no_slots(capabilities: HostCapabilities, platform: Platform) -> None:
    """A generation that libvirt or the kernel does without, or that nobody gives a number, has none."""
    assert slot_totals(capabilities, platform, None) == {}


def test_simulated() -> None:
    """On a simulated platform libvirt's number, which comes from the real processor, does not count."""
    capabilities = replace(CAPABILITIES, sev_max_guests=0)

    slots = slot_totals(capabilities, replace(PLATFORM, simulated=True), None)[Generation.SEV]

    assert dict(slots.sources) == {"kernel": 20}


def test_no_source() -> None:
    """Without any number there are no slots."""
    assert SlotTotal({}).total == 0
    assert SlotTotal({}).ruled_by == "nothing"
