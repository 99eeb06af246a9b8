"""Starting, stopping and rebooting a guest that was built: steps that can each be run again."""

import asyncio
import contextlib
from uuid import UUID

import structlog

from sev_agent.compute.accounting import Accounting
from sev_agent.compute.record import Record
from sev_agent.hypervisor.domains import Domains
from sev_agent.hypervisor.errors import HypervisorError, HypervisorUnavailable
from sev_agent.uninterrupted import uninterrupted

log = structlog.stdlib.get_logger(__name__)

_LOOK_SECONDS = 5.0
"""libvirt's events tell when a guest has stopped; this is for one that was lost with a connection."""


class Power:
    """The power button of every guest.

    SEV-ES and SEV-SNP guests cannot be reset, since nobody but the guest can read its processors' state: so a reboot
    is a stop and a start for all, as in Nova. The slot is held in between.
    """

    def __init__(self, *, domains: Domains, accounting: Accounting, shutdown_timeout: float) -> None:
        self._domains = domains
        self._accounting = accounting
        self._shutdown_timeout = shutdown_timeout
        self._waiting: dict[UUID, asyncio.Event] = {}

    def on_stopped(self, uuid: UUID) -> None:
        """Note libvirt's event that the guest ``uuid`` has stopped."""
        if uuid in self._waiting:
            self._waiting[uuid].set()

    async def start(self, record: Record) -> None:
        """Take what the guest needs in Placement, then start it.

        Raises ``Full`` where the host has not enough left: then nothing was started. What a failed start has claimed
        goes back by the accounting that follows every operation.
        """
        await uninterrupted(self._accounting.claim(record))
        await uninterrupted(self._domains.start(record.uuid))

    async def stop(self, record: Record) -> None:
        """Let the guest shut itself down; after the time limit, or if it cannot be asked, end it."""
        if not await self._shut_down(record.uuid):
            log.warning("instance.stop.forced", seconds=self._shutdown_timeout)
            await uninterrupted(self._domains.destroy(record.uuid))

    async def reboot(self, record: Record, *, hard: bool) -> None:
        """Stop the guest, at once if ``hard``, and start it again."""
        if hard:
            await uninterrupted(self._domains.destroy(record.uuid))
        else:
            await self.stop(record)
        await self.start(record)

    async def _shut_down(self, uuid: UUID) -> bool:
        """Whether the guest has stopped by itself within the time limit."""
        stopped = self._waiting[uuid] = asyncio.Event()
        try:
            async with asyncio.timeout(self._shutdown_timeout):
                await self._domains.shutdown(uuid)
                while await self._runs(uuid):
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(_LOOK_SECONDS):
                            await stopped.wait()
                    stopped.clear()
        except TimeoutError:
            return False
        except HypervisorUnavailable:
            raise
        except HypervisorError as error:
            log.warning("instance.shutdown.refused", error=str(error))
            return False
        finally:
            del self._waiting[uuid]
        return True

    async def _runs(self, uuid: UUID) -> bool:
        state = await self._domains.state(uuid)
        return state is not None and state.is_active
