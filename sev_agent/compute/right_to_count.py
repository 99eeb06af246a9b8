"""Whether this daemon may count in Placement under its host's name, which another daemon may have."""

import asyncio

from sev_agent.errors import HostTaken, SevAgentError
from sev_agent.messaging.host_lock import HostBusy


class RightToCount:
    """Given for good by the broker's first claim of the host's name; until then, only while the broker cannot say.

    A second daemon of one name knows nothing of the first one's guests: what it wrote would take their allocations
    away. But a host is also to count where RabbitMQ is away as the daemon starts.
    """

    def __init__(self) -> None:
        self._held = False
        self._given = asyncio.Event()

    def look(self, *, is_up: bool, fault: SevAgentError | None) -> None:
        """Note what the broker tells: whether it is up, else why the last attempt to connect failed."""
        self._held = self._held or is_up
        is_unknown = fault is not None and not isinstance(fault, (HostBusy, HostTaken))
        if self._held or is_unknown:
            self._given.set()
        else:
            self._given.clear()

    async def wait(self) -> None:
        """Return once it is given.

        Every attempt to connect is bounded, and ends in a claim or a fault; a name that stays another's ends the
        daemon.
        """
        await self._given.wait()
