"""The lab's compute hosts: simulated ones, or this machine itself where it has working SEV."""

import asyncio
from pathlib import Path
from typing import TypeAlias

from lxml import etree

from sev_agent.lab.platform.compute_host import ComputeHost, RealHost
from sev_agent.lab.platform.detect import real_sev_available

Host: TypeAlias = ComputeHost | RealHost

_PROBE_TIMEOUT = 20.0
_REAL_URI = "qemu:///system"


async def has_working_sev() -> bool:
    """Whether this machine can run encrypted guests: kernel, devices and libvirt all say so.

    The rule is Nova's: the parameter ``sev`` of kvm_amd is on, and libvirt's domain capabilities say
    ``<sev supported='yes'>``; beside that the two devices must be usable.
    """
    if not await asyncio.to_thread(real_sev_available):
        return False
    capabilities = await _domain_capabilities()
    return capabilities is not None and libvirt_offers_sev(capabilities)


def libvirt_offers_sev(capabilities: bytes) -> bool:
    """Whether libvirt's domain capabilities (XML) say that SEV guests can be run."""
    sev = etree.fromstring(capabilities).find("./features/sev")
    return sev is not None and sev.get("supported") == "yes"


def host(name: str, *, lab: Path, slots: int, real: bool) -> Host:
    """Host ``name`` of the lab at ``lab``; ``slots`` counts for a simulated platform only."""
    directory = lab / "hosts" / name
    if real:
        return RealHost(name=name, directory=directory, lab=lab)
    return ComputeHost(name=name, directory=directory, lab=lab, slots=slots)


async def _domain_capabilities() -> bytes | None:
    command = ("virsh", "--connect", _REAL_URI, "domcapabilities", "--virttype", "kvm", "--machine", "q35")
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
