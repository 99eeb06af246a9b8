from typing import Any, cast

import libvirt  # noqa: TID251 - the tests of the package that may
import pytest

from sev_agent.config import HypervisorSection
from sev_agent.hypervisor.capabilities import HostCapabilities, _read, read
from sev_agent.hypervisor.errors import HypervisorError
from tests.libvirt_host import Host

_SEV = """<domainCapabilities><path>/usr/bin/qemu-system-x86_64</path><machine>pc-q35-10.0</machine><features>
<sev supported='yes'><cbitpos>47</cbitpos><reducedPhysBits>1</reducedPhysBits>
<maxGuests>410</maxGuests><maxESGuests>99</maxESGuests></sev>
<launchSecurity supported='yes'><enum name='sectype'><value>sev</value><value>sev-snp</value></enum></launchSecurity>
</features></domainCapabilities>"""
_OLD_SEV = """<domainCapabilities><features><sev supported='yes'><cbitpos>47</cbitpos>
<reducedPhysBits>1</reducedPhysBits></sev></features></domainCapabilities>"""
_NO_SEV = """<domainCapabilities><machine>pc-q35-10.0</machine><features><sev supported='no'/>
<launchSecurity supported='no'/></features></domainCapabilities>"""


class _Connection:
    """A libvirt that answers with ``xml``: no driver without SEV hardware can."""

    def __init__(self, xml: str) -> None:
        self._xml = xml

    def getDomainCapabilities(self, *_arguments: Any) -> str:  # noqa: N802 - libvirt's name
        return self._xml

    def getInfo(self) -> list[Any]:  # noqa: N802 - libvirt's name
        return ["x86_64", 257_500, 128, 2600, 2, 2, 32, 2]

    def getMemoryStats(self, _cell: int) -> dict[str, int]:  # noqa: N802 - libvirt's name
        return {"total": 515_000 * 1024, "free": 1024}

    def getLibVersion(self) -> int:  # noqa: N802 - libvirt's name
        return 11_003_000

    def getVersion(self) -> int:  # noqa: N802 - libvirt's name
        return 10_000_002

    def getHostname(self) -> str:  # noqa: N802 - libvirt's name
        return "compute1"


def _capabilities(xml: str) -> HostCapabilities:
    settings = HypervisorSection()
    return _read(cast("libvirt.virConnect", _Connection(xml)), settings.emulator, settings.virt_type)


def test_reads_a_host_with_sev() -> None:
    """Everything that counting and placing need is in one value."""
    assert _capabilities(_SEV) == HostCapabilities(
        sev=True,
        sev_max_guests=410,
        sev_es_max_guests=99,
        cbitpos=47,
        reduced_phys_bits=1,
        sectypes=frozenset({"sev", "sev-snp"}),
        machine="pc-q35-10.0",
        libvirt_version="11.3.0",
        emulator_version="10.0.2",
        hostname="compute1",
        cpus=128,
        memory_mb=515_000,
    )


def test_an_older_libvirt_tells_less() -> None:
    """Where libvirt does not say how many guests there may be, nothing is made up."""
    old = _capabilities(_OLD_SEV)
    assert old.sev
    assert (old.sev_max_guests, old.sev_es_max_guests, old.sectypes) == (None, None, frozenset())


def test_a_host_without_sev_says_so() -> None:
    """``supported='no'`` leaves no number behind."""
    none = _capabilities(_NO_SEV)
    assert not none.sev
    assert (none.sev_max_guests, none.cbitpos, none.sectypes) == (None, None, frozenset())


def test_an_answer_that_is_not_xml_is_an_error() -> None:
    """A broken answer is told as such, and brings nothing down."""
    with pytest.raises(HypervisorError, match="not XML"):
        _capabilities("<domainCapabilities>")


async def test_reads_the_host_below(host: Host) -> None:
    """Against a real libvirt without SEV: no SEV, its versions and its size."""
    capabilities = await read(host.hypervisor, HypervisorSection())
    assert not capabilities.sev
    assert capabilities.cpus > 0
    assert capabilities.memory_mb > 0
    assert capabilities.libvirt_version.count(".") == 2
