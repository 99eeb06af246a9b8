"""How many slots a host has: the smallest number rules, and it is known who said it."""

from dataclasses import replace

import pytest

from sev_agent.compute.slots import SlotTotal, generations
from sev_agent.config import EncryptionSection
from sev_agent.hypervisor.capabilities import HostCapabilities
from sev_agent.hypervisor.platform import Platform
from sev_agent.sev.generation import Generation

CAPABILITIES = HostCapabilities(
    sev=True,
    sev_max_guests=10,
    sev_es_max_guests=5,
    cbitpos=47,
    reduced_phys_bits=1,
    sectypes=frozenset({"sev", "sev-snp"}),
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
    capabilities = replace(CAPABILITIES, sev_max_guests=libvirt)

    slots = generations(capabilities, platform, EncryptionSection(limit=limit, es_limit=1)).usable[Generation.SEV]

    assert (slots.total, slots.ruled_by) == (total, ruled_by)


@pytest.mark.parametrize(
    ("kernel", "libvirt", "limit", "total", "ruled_by"),
    [
        (6, 5, None, 5, "libvirt"),
        (4, 5, None, 4, "kernel"),
        (6, 5, 2, 2, "configuration"),
        (6, None, None, 6, "kernel"),
    ],
)
@pytest.mark.parametrize("generation", [Generation.SEV_ES, Generation.SEV_SNP])
def test_the_pool_of_es_and_snp(
    generation: Generation, kernel: int, libvirt: int | None, limit: int | None, total: int, ruled_by: str
) -> None:
    """SEV-ES and SEV-SNP have a pool of their own, with its own numbers; SEV's say nothing of it."""
    snp = generation is Generation.SEV_SNP
    platform = replace(PLATFORM, sev_snp=snp, misc_capacity={"sev": 99, "sev_es": kernel})
    settings = EncryptionSection(limit=1, es_limit=limit)

    slots = generations(replace(CAPABILITIES, sev_es_max_guests=libvirt), platform, settings).usable[generation]

    assert (slots.total, slots.ruled_by) == (total, ruled_by)


@pytest.mark.parametrize("snp", [False, True])
def test_es_and_snp_exclude_each_other(snp: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """Where SEV-SNP is on there is no SEV-ES (CVE-2025-48514); their shared slots are never offered twice."""
    found = generations(CAPABILITIES, replace(PLATFORM, sev_snp=snp), EncryptionSection())

    lost, kept = (Generation.SEV_ES, Generation.SEV_SNP) if snp else (Generation.SEV_SNP, Generation.SEV_ES)
    assert found.usable.keys() == {Generation.SEV, kept}
    assert found.unusable.keys() == {lost}
    assert ("CVE-2025-48514" in found.unusable[lost]) is snp


@pytest.mark.parametrize(
    ("generation", "capabilities", "platform", "why"),
    [
        (Generation.SEV, replace(CAPABILITIES, sev=False), PLATFORM, "libvirt reports no SEV"),
        (Generation.SEV, CAPABILITIES, replace(PLATFORM, sev=False), "its parameter sev off"),
        (Generation.SEV, replace(CAPABILITIES, sev_max_guests=0), PLATFORM, "no slot, by libvirt"),
        (
            Generation.SEV,
            replace(CAPABILITIES, sev_max_guests=None),
            replace(PLATFORM, misc_capacity={}),
            "nobody tells",
        ),
        (Generation.SEV_ES, CAPABILITIES, replace(PLATFORM, sev_es=False), "its parameter sev_es off"),
        (Generation.SEV_ES, replace(CAPABILITIES, sev=False), PLATFORM, "libvirt reports no SEV"),
        (Generation.SEV_ES, replace(CAPABILITIES, emulator_version="7.2.0"), PLATFORM, "QEMU 7.2.0 is older"),
        (Generation.SEV_ES, CAPABILITIES, replace(PLATFORM, misc_capacity={"sev_es": 0}), "lowest SEV ASID"),
        (Generation.SEV_SNP, CAPABILITIES, PLATFORM, "its parameter sev_snp off"),
        (
            Generation.SEV_SNP,
            replace(CAPABILITIES, sectypes=frozenset({"sev"})),
            replace(PLATFORM, sev_snp=True),
            "no launch security 'sev-snp'",
        ),
    ],
)
def test_unusable(generation: Generation, capabilities: HostCapabilities, platform: Platform, why: str) -> None:
    """A generation that the host cannot run has no slots, and the reason is told."""
    found = generations(capabilities, platform, EncryptionSection())

    assert generation not in found.usable
    assert why in found.unusable[generation]


def test_simulated() -> None:
    """On a simulated platform libvirt's number, which comes from the real processor, does not count."""
    capabilities = replace(CAPABILITIES, sev_max_guests=0)

    found = generations(capabilities, replace(PLATFORM, simulated=True), EncryptionSection())

    assert dict(found.usable[Generation.SEV].sources) == {"kernel": 20}


def test_no_source() -> None:
    """Without any number there are no slots."""
    assert SlotTotal({}).total == 0
    assert SlotTotal({}).ruled_by == "nothing"


def test_without_the_device() -> None:
    """Where /dev/sev is missing no generation can be run, and that is said; where devices are hidden nothing is."""
    found = generations(CAPABILITIES, replace(PLATFORM, sev_device=False), EncryptionSection())
    assert found.usable == {}
    assert "there is no /dev/sev" in found.unusable[Generation.SEV]
    assert "there is no /dev/sev" in found.unusable[Generation.SEV_ES]
    assert "parameter sev_snp off" in found.unusable[Generation.SEV_SNP]
    for seen in (True, None):
        assert (
            Generation.SEV in generations(CAPABILITIES, replace(PLATFORM, sev_device=seen), EncryptionSection()).usable
        )
