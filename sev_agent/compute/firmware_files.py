"""The firmware's files: what the code is, and a guest's own copy of the variables."""

import asyncio
import hashlib
from pathlib import Path

import structlog

from sev_agent.durable import write_durably
from sev_agent.errors import SevAgentError

log = structlog.get_logger(__name__)


class FirmwareTemplateMissing(SevAgentError):
    """The firmware's variable template cannot be read on this host."""

    code = "firmware.template_missing"
    retryable = True


class FirmwareUnreadable(SevAgentError):
    """The firmware that a descriptor names cannot be read on this host."""

    code = "firmware.unreadable"
    retryable = True


async def firmware_digest(code: Path) -> str:
    """The SHA-256 of the firmware's code, in hexadecimal digits. Raises ``FirmwareUnreadable``."""
    return await asyncio.to_thread(_digest, code)


def _digest(code: Path) -> str:
    try:
        with code.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise FirmwareUnreadable(
            f"the firmware {code} cannot be read: {error.strerror}",
            remedy="install the package that holds it, or remove the descriptor that names it",
        ) from error


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
