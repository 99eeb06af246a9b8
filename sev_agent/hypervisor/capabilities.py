"""What the host below can do, as libvirt tells it."""

from dataclasses import dataclass
from pathlib import Path

import libvirt  # noqa: TID251 - this package is the one that may

from sev_agent.config import HypervisorSection
from sev_agent.hypervisor.connection import Hypervisor
from sev_agent.hypervisor.errors import HypervisorError, text_of
from sev_agent.hypervisor.sev_capabilities import parse

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


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainCapabilities:
    """libvirt's XML on what domains can have, and its version and the emulator's."""

    xml: str
    libvirt_version: str
    emulator_version: str


async def read_domain_capabilities(hypervisor: Hypervisor, settings: HypervisorSection) -> DomainCapabilities:
    """Only what libvirt says of domains, unread. Raises as ``read``."""
    return await hypervisor.look(lambda connection: _ask(connection, settings.emulator, settings.virt_type))


async def read(hypervisor: Hypervisor, settings: HypervisorSection) -> HostCapabilities:
    """Ask libvirt, in one trip. Raises ``HypervisorUnavailable``; ``HypervisorError`` if the emulator is unusable."""
    return await hypervisor.look(lambda connection: _read(connection, settings.emulator, settings.virt_type))


def _read(connection: libvirt.virConnect, emulator: Path, virt_type: str) -> HostCapabilities:
    try:
        told = _ask(connection, emulator, virt_type)
        _, node_memory_mb, cpus, *_ = connection.getInfo()
        memory_mb = _memory_mb(connection) or node_memory_mb
        hostname = connection.getHostname()
    except libvirt.libvirtError as error:
        raise _untold(emulator, virt_type, error) from error
    answer = parse(told.xml)
    return HostCapabilities(
        sev=answer.sev,
        sev_max_guests=answer.sev_max_guests,
        sev_es_max_guests=answer.sev_es_max_guests,
        cbitpos=answer.cbitpos,
        reduced_phys_bits=answer.reduced_phys_bits,
        sectypes=answer.sectypes,
        machine=answer.machine or _MACHINE,
        libvirt_version=told.libvirt_version,
        emulator_version=told.emulator_version,
        hostname=hostname,
        cpus=cpus,
        memory_mb=memory_mb,
    )


def _ask(connection: libvirt.virConnect, emulator: Path, virt_type: str) -> DomainCapabilities:
    try:
        return DomainCapabilities(
            xml=connection.getDomainCapabilities(str(emulator), _ARCHITECTURE, _MACHINE, virt_type),
            libvirt_version=_version(connection.getLibVersion()),
            emulator_version=_version(connection.getVersion()),
        )
    except libvirt.libvirtError as error:
        raise _untold(emulator, virt_type, error) from error


def _untold(emulator: Path, virt_type: str, error: libvirt.libvirtError) -> HypervisorError:
    return HypervisorError(
        f"libvirt tells no capabilities of {emulator} with {virt_type}: {text_of(error)}",
        remedy="correct hypervisor.emulator and hypervisor.virt_type",
    )


def _memory_mb(connection: libvirt.virConnect) -> int | None:
    """All RAM that the kernel has, MiB; ``None`` or 0 where the driver does not count it.

    ``getInfo`` adds up the NUMA cells instead, which miss memory that was plugged in after the start.
    """
    try:
        return int(connection.getMemoryStats(libvirt.VIR_NODE_MEMORY_STATS_ALL_CELLS).get("total", 0)) // 1024
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_SUPPORT:
            return None
        raise


def _version(number: int) -> str:
    return f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}"
