"""A compute host as the lab sees it; and the real one, where this machine has working SEV."""

import asyncio
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from lxml import etree

from sev_agent.lab.service import LabError, Service

_PROBE_TIMEOUT = 20.0
REAL_URI = "qemu:///system"


class Host(Protocol):
    """One libvirtd with its SEV platform, real or simulated.

    ``slots`` is how many encrypted guests the platform has room for, where the lab decides it. ``platform_root`` is the
    root below which ``sys``, ``proc`` and ``dev`` are read; ``platform`` names what is there for people.
    ``firmware_descriptors`` is a directory of those that the machine's own lack.
    """

    @property
    def name(self) -> str: ...

    @property
    def directory(self) -> Path: ...

    @property
    def slots(self) -> int | None: ...

    @property
    def platform(self) -> str: ...

    @property
    def firmware_descriptors(self) -> Path | None: ...

    @property
    def uri(self) -> str: ...

    @property
    def platform_root(self) -> Path: ...

    @property
    def virt_type(self) -> Literal["kvm", "qemu"]: ...

    def services(self, mark_environment: Mapping[str, str]) -> tuple[Service, ...]:
        """What to start, in this order; ``mark_environment`` is what guests must carry to be known as the lab's."""
        ...

    async def prepare(self) -> None:
        """Make files and directories, before the services start; harmless when they run."""
        ...

    async def cleanup(self) -> None:
        """Undo what ``prepare`` and the services made, after these have ended."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RealHost:
    """The machine itself, with the libvirtd that it runs already."""

    name: str
    directory: Path
    slots: int | None = None
    platform: str = "real"
    firmware_descriptors: Path | None = None
    uri: str = REAL_URI
    platform_root: Path = Path("/")
    virt_type: Literal["kvm", "qemu"] = "kvm"

    def services(self, mark_environment: Mapping[str, str]) -> tuple[Service, ...]:  # noqa: ARG002 - none of the lab's
        return ()

    async def prepare(self) -> None:
        """Raises ``LabError`` when libvirt does not answer."""
        if await _domain_capabilities() is None:
            raise LabError(f"libvirt does not answer at {self.uri}", remedy="start libvirtd (systemctl start libvirtd)")

    async def cleanup(self) -> None:
        pass


async def has_working_sev(root: Path = Path("/")) -> bool:
    """Whether this machine can run encrypted guests: kernel, devices and libvirt all say so.

    The rule is Nova's: the parameter ``sev`` of kvm_amd is ``1`` or ``Y``, and libvirt's domain capabilities say
    ``<sev supported='yes'>``; beside that the two devices must be usable. ``root`` is where ``sys`` and ``dev`` are.
    """
    if not await asyncio.to_thread(_kernel_offers_sev, root):
        return False
    capabilities = await _domain_capabilities()
    return capabilities is not None and libvirt_offers_sev(capabilities)


def _kernel_offers_sev(root: Path) -> bool:
    try:
        parameter = (root / "sys/module/kvm_amd/parameters/sev").read_text().strip()
    except OSError:
        return False
    usable = (os.access(root / "dev" / name, os.R_OK | os.W_OK) for name in ("sev", "kvm"))
    return parameter in {"1", "Y"} and all(usable)


def libvirt_offers_sev(capabilities: bytes) -> bool:
    """Whether libvirt's domain capabilities (XML) say that SEV guests can be run."""
    sev = etree.fromstring(capabilities).find("./features/sev")
    return sev is not None and sev.get("supported") == "yes"


async def _domain_capabilities() -> bytes | None:
    command = ("virsh", "--connect", REAL_URI, "domcapabilities", "--virttype", "kvm", "--machine", "q35")
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
    except FileNotFoundError:
        return None
    try:
        async with asyncio.timeout(_PROBE_TIMEOUT):
            output, _ = await process.communicate()
    except TimeoutError:
        return None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return output if process.returncode == 0 else None
