"""What the host below can do, as libvirt tells it."""

from dataclasses import dataclass
from pathlib import Path

import libvirt  # noqa: TID251 - this package is the one that may
from lxml import etree

from sev_agent.config import HypervisorSection
from sev_agent.hypervisor.connection import Hypervisor
from sev_agent.hypervisor.errors import HypervisorError, text_of

_ARCHITECTURE = "x86_64"
_MACHINE = "q35"


@dataclass(frozen=True, slots=True, kw_only=True)
class HostCapabilities:
    """One reading of the host.

    ``sev`` is whether QEMU and KVM can launch encrypted guests. The largest numbers of guests come from the CPU's own
    ASID ranges; None where there is no SEV or this libvirt does not say. ``sectypes`` are the types of
    ``<launchSecurity>`` that libvirt (since 10.5) offers here. ``machine`` is what q35 stands for. Versions are
    ``major.minor.micro``; ``memory_mb`` is all RAM of the host, MiB.
    """

    sev: bool
    sev_max_guests: int | None
    sev_es_max_guests: int | None
    cbitpos: int | None
    reduced_phys_bits: int | None
    sectypes: frozenset[str]
    machine: str
    libvirt_version: str
    emulator_version: str
    hostname: str
    cpus: int
    memory_mb: int


async def read(hypervisor: Hypervisor, settings: HypervisorSection) -> HostCapabilities:
    """Ask libvirt, in one trip. Raises ``HypervisorUnavailable``; ``HypervisorError`` if the emulator is unusable."""
    return await hypervisor.look(lambda connection: _read(connection, settings.emulator, settings.virt_type))


def _read(connection: libvirt.virConnect, emulator: Path, virt_type: str) -> HostCapabilities:
    try:
        xml = connection.getDomainCapabilities(str(emulator), _ARCHITECTURE, _MACHINE, virt_type)
        _, node_memory_mb, cpus, *_ = connection.getInfo()
        memory_mb = _memory_mb(connection) or node_memory_mb
        versions = connection.getLibVersion(), connection.getVersion()
        hostname = connection.getHostname()
    except libvirt.libvirtError as error:
        raise HypervisorError(
            f"libvirt tells no capabilities of {emulator} with {virt_type}: {text_of(error)}",
            remedy="correct hypervisor.emulator and hypervisor.virt_type",
        ) from error
    answer = _parse(xml)
    sev = answer.find("features/sev[@supported='yes']")
    return HostCapabilities(
        sev=sev is not None,
        sev_max_guests=_number(sev, "maxGuests"),
        sev_es_max_guests=_number(sev, "maxESGuests"),
        cbitpos=_number(sev, "cbitpos"),
        reduced_phys_bits=_number(sev, "reducedPhysBits"),
        sectypes=_sectypes(answer),
        machine=answer.findtext("machine") or _MACHINE,
        libvirt_version=_version(versions[0]),
        emulator_version=_version(versions[1]),
        hostname=hostname,
        cpus=cpus,
        memory_mb=memory_mb,
    )


def _memory_mb(connection: libvirt.virConnect) -> int | None:
    """All RAM that the kernel has, MiB; ``None`` where the driver does not count it.

    ``getInfo`` adds up the NUMA cells instead, which miss memory that was plugged in after the start.
    """
    try:
        return int(connection.getMemoryStats(libvirt.VIR_NODE_MEMORY_STATS_ALL_CELLS)["total"]) // 1024
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_SUPPORT:
            return None
        raise


def _parse(xml: str) -> etree._Element:
    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False)
    try:
        return etree.fromstring(xml.encode(), parser)
    except etree.XMLSyntaxError as error:
        raise HypervisorError(f"libvirt's domain capabilities are not XML: {error}") from error


def _number(sev: etree._Element | None, name: str) -> int | None:
    text = "" if sev is None else (sev.findtext(name) or "").strip()
    return int(text) if text.isdecimal() else None


def _sectypes(capabilities: etree._Element) -> frozenset[str]:
    found = capabilities.iterfind("features/launchSecurity[@supported='yes']/enum[@name='sectype']/value")
    return frozenset(value.text for value in found if value.text)


def _version(number: int) -> str:
    return f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}"
