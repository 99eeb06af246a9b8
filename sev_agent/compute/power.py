"""Starting, stopping and rebooting a guest that was built: steps that can each be run again."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Final
from uuid import UUID

import structlog

from sev_agent.compute.accounting import Accounting
from sev_agent.compute.admission import Admission
from sev_agent.compute.record import Record
from sev_agent.compute.refusal import explained
from sev_agent.crash_points import CrashPoint, reached
from sev_agent.errors import SevAgentError
from sev_agent.hypervisor.domains import Domains
from sev_agent.hypervisor.errors import DomainNotFound, HypervisorError, HypervisorUnavailable
from sev_agent.openstack.placement import Full
from sev_agent.uninterrupted import uninterrupted

log = structlog.stdlib.get_logger(__name__)

_PRESS_SECONDS: Final = 10.0
"""A guest that is still booting does not notice its power button: it is pressed again, as Nova does."""


class Power:
    """The power button of every guest; ``shutdown_timeout`` is the seconds a guest gets to shut itself down.

    ``redefine`` makes a guest known to libvirt again.

    SEV-ES and SEV-SNP guests cannot be reset, since nobody but the guest can read its processors' state: so a reboot
    is a stop and a start for all, as in Nova. The slot is held in between.
    """

    def __init__(
        self,
        *,
        domains: Domains,
        accounting: Accounting,
        admission: Admission,
        redefine: Callable[[Record], Awaitable[None]],
        shutdown_timeout: float,
    ) -> None:
        self._domains = domains
        self._redefine = redefine
        self._accounting = accounting
        self._admission = admission
        self._shutdown_timeout = shutdown_timeout
        self._waiting: dict[UUID, asyncio.Event] = {}

    def on_stopped(self, uuid: UUID) -> None:
        """Note libvirt's event that the guest ``uuid`` has stopped."""
        if uuid in self._waiting:
            self._waiting[uuid].set()

    async def start(self, record: Record) -> None:
        """Take what the guest needs in Placement, then start it.

        Raises ``Full`` where the host has not enough left, and what ``Admission`` raises: then nothing was started.
        What a failed start has claimed goes back by the accounting that follows every operation.
        """
        # What a daemon has started that then died has its memory already: no more of it need be left.
        if not await self.runs(record.uuid):
            await self._admit(record)
        await self._claim(record)
        await self._boot(record)

    async def stop(self, record: Record) -> None:
        """Let the guest shut itself down; after the time limit, or if it cannot be asked, end it.

        What a stopped guest does not keep has been given back then, unless Placement is away.
        """
        await self._end(record.uuid)
        reached(CrashPoint.POWER_AFTER_END)
        try:
            await uninterrupted(self._accounting.rest(record))
            reached(CrashPoint.POWER_AFTER_REST)
        except SevAgentError as error:
            # The guest has stopped, and that is what was asked for; the accounting tries again.
            log.warning("instance.stop.slot_kept", code=error.code, error=str(error))

    async def halt(self, record: Record, *, hard: bool) -> None:
        """The first half of a reboot: the guest does not run then, and has what it needs to start.

        ``hard`` ends it without asking it. Raises ``Full`` where it did not run, and the host has not enough left.
        """
        if not await self.runs(record.uuid):
            await self._admit(record)
            await self._claim(record)
        elif hard:
            await uninterrupted(self._domains.destroy(record.uuid))
        else:
            await self._end(record.uuid)
        reached(CrashPoint.POWER_AFTER_END)

    async def restart(self, record: Record) -> None:
        """The second half of a reboot."""
        await self._boot(record)

    async def runs(self, uuid: UUID) -> bool:
        """Whether the guest runs. Raises ``HypervisorError``."""
        return await self._domains.runs(uuid)

    async def _boot(self, record: Record) -> None:
        try:
            await uninterrupted(self._domains.start(record.uuid))
        except DomainNotFound:
            # Somebody undefined it, which took nothing else away: its disk is still there.
            log.warning("instance.domain.missing")
            await uninterrupted(self._redefine(record))
            reached(CrashPoint.POWER_AFTER_REDEFINE)
            await uninterrupted(self._domains.start(record.uuid))
        reached(CrashPoint.POWER_AFTER_START)

    async def _admit(self, record: Record) -> None:
        if record.generation is not None:
            await self._admission.check(record.generation, record.instance.flavor.memory_mb)

    async def _claim(self, record: Record) -> None:
        reached(CrashPoint.POWER_BEFORE_CLAIM)
        try:
            # Placement may carry out a request that we no longer wait for: then nobody would give the slot back.
            await uninterrupted(self._accounting.claim(record))
        except Full as error:
            raise explained(error, record.instance.flavor) from error
        reached(CrashPoint.POWER_AFTER_CLAIM)

    async def _end(self, uuid: UUID) -> None:
        if not await self._shut_down(uuid):
            await uninterrupted(self._domains.destroy(uuid))

    async def _shut_down(self, uuid: UUID) -> bool:
        """Whether the guest has stopped by itself within the time limit."""
        stopped = self._waiting[uuid] = asyncio.Event()
        try:
            async with asyncio.timeout(self._shutdown_timeout):
                while await self.runs(uuid):
                    await self._domains.shutdown(uuid)
                    reached(CrashPoint.POWER_AFTER_BUTTON)
                    # An event may be lost with the connection: then the next look tells.
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(_PRESS_SECONDS):
                            await stopped.wait()
                    # Before the look, not after it: an event in between is not lost.
                    stopped.clear()
        except TimeoutError:
            log.warning("instance.shutdown.late", seconds=self._shutdown_timeout)
            return False
        except HypervisorUnavailable:
            raise
        except HypervisorError as error:
            log.warning("instance.shutdown.refused", error=str(error))
            return False
        finally:
            del self._waiting[uuid]
        return True
