"""A guest's own copy of the firmware's variables."""

import asyncio
from pathlib import Path

import structlog

from sev_agent.durable import write_durably
from sev_agent.errors import SevAgentError

log = structlog.get_logger(__name__)


class FirmwareTemplateMissing(SevAgentError):
    """The firmware's variable template cannot be read on this host."""

    code = "firmware.template_missing"
    retryable = True


async def create_nvram(template: Path, destination: Path) -> None:
    """Copy ``template`` to ``destination``, durably; a copy of the right size is kept, with what the guest wrote in it.

    Raises ``FirmwareTemplateMissing``, ``OSError``.
    """
    await asyncio.to_thread(_create, template, destination)


def _create(template: Path, destination: Path) -> None:
    try:
        size = template.stat().st_size
        # The size alone is compared: libvirt gives the file to QEMU's user, and it may not be readable here.
        if destination.exists():
            if destination.stat().st_size == size:
                return
            log.warning("nvram.replaced", path=str(destination), found=destination.stat().st_size, expected=size)
        content = template.read_bytes()
    except (FileNotFoundError, PermissionError) as error:
        raise FirmwareTemplateMissing(
            f"the firmware's variable template {template} cannot be read: {error.strerror}",
            remedy="install the package that holds it (Debian: ovmf), or correct hypervisor.firmware_dirs",
        ) from error
    write_durably(destination, content)
