"""Which version of AMD's interface the firmware of this host's secure processor has."""

import asyncio
from pathlib import Path
from typing import Final, TypeAlias

import structlog

from sev_agent.hypervisor.host_files import HostFiles
from sev_agent.hypervisor.secure_processor import Command, platform_status

log = structlog.stdlib.get_logger(__name__)

Version: TypeAlias = tuple[int, int]
"""Major and minor number of the API, which is the ABI's of SEV-SNP too."""

_ANSWER_SECONDS: Final = 5.0


class FirmwareVersion:
    """Asks ``/dev/sev`` below ``platform_root``. It may take long: Linux waits for a processor that hangs."""

    def __init__(self, platform_root: Path) -> None:
        self._files = HostFiles(platform_root)
        self._asked: asyncio.Task[Version] | None = None
        self._silent = ""

    async def read(self) -> Version | None:
        """The version now, as firmware can be exchanged while the host runs; ``None`` where it cannot be known."""
        asked = self._asked
        if asked is None:
            asked = self._asked = asyncio.create_task(asyncio.to_thread(self._ask), name="firmware-version")
        # One question at a time, whoever asks: one that is not answered yet is waited for again the next time.
        done, _ = await asyncio.wait({asked}, timeout=_ANSWER_SECONDS)
        if not done:
            self._say(f"no answer within {_ANSWER_SECONDS:.0f} s")
            return None
        if self._asked is asked:
            self._asked = None
        try:
            version = asked.result()
        except OSError as error:
            self._say(str(error))
            return None
        self._silent = ""
        return version

    def _ask(self) -> Version:
        status = platform_status(self._files, Command.SEV_PLATFORM_STATUS)
        return status.api_major, status.api_minor

    def _say(self, reason: str) -> None:
        if reason != self._silent:
            log.info("host.firmware_version.unknown", reason=reason)
        self._silent = reason
