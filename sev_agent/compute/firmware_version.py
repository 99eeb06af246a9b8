"""Which version of AMD's interface the firmware of this host's secure processor has."""

from pathlib import Path
from typing import Final, TypeAlias

import structlog

from sev_agent.hypervisor.host_files import HostFiles
from sev_agent.hypervisor.secure_processor import Command, platform_status
from sev_agent.question import Question

log = structlog.stdlib.get_logger(__name__)

Version: TypeAlias = tuple[int, int]
"""Major and minor number of the API, which is the ABI's of SEV-SNP too."""

_ANSWER_SECONDS: Final = 5.0


class FirmwareVersion:
    """Asks ``/dev/sev`` below ``platform_root``. It may take long: Linux waits for a processor that hangs."""

    def __init__(self, platform_root: Path) -> None:
        self._files = HostFiles(platform_root)
        self._question = Question(self._ask, name="firmware-version", limit=_ANSWER_SECONDS)
        self._silent = ""

    async def read(self) -> Version | None:
        """The version now, as firmware can be exchanged while the host runs; ``None`` where it cannot be known."""
        try:
            version = await self._question.answer()
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
