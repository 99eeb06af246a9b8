"""Whether Placement can be used: asked now and then, and at once when somebody could not."""

import asyncio
import contextlib
from typing import Final

import structlog

from sev_agent.errors import SevAgentError
from sev_agent.observe.health import Dependency, Health
from sev_agent.openstack.placement import Placement
from sev_agent.sev.generation import NODE_TYPE_TRAIT
from sev_agent.uninterrupted import raise_if_cancelled

log = structlog.stdlib.get_logger(__name__)

_AWAY_SECONDS: Final = 1.0
_IDLE_SECONDS: Final = 30.0


class PlacementWatch:
    """Keeps ``health`` true about Placement, Keystone in front of it included.

    Each look also makes Placement know the node type, which no host may have registered yet: it refuses to look for a
    trait that it does not know.
    """

    def __init__(self, placement: Placement, health: Health) -> None:
        self._placement = placement
        self._health = health
        self._up = asyncio.Event()
        self._look_now = asyncio.Event()

    @property
    def is_up(self) -> bool:
        return self._up.is_set()

    async def wait_up(self, seconds: float) -> bool:
        """Wait until Placement can be used; whether that came true in time."""
        if seconds <= 0:
            return False
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._up.wait()
        return self._up.is_set()

    def failed(self, error: SevAgentError) -> None:
        """Note that a request could not be carried out because of ``error``."""
        self._down(error)
        self._look_now.set()

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            raise_if_cancelled()
            self._look_now.clear()
            try:
                await self._placement.ensure_trait(NODE_TYPE_TRAIT)
            except SevAgentError as error:
                self._down(error)
                await asyncio.sleep(_AWAY_SECONDS)
                continue
            self._up.set()
            self._health.up(Dependency.PLACEMENT)
            try:
                async with asyncio.timeout(_IDLE_SECONDS):
                    await self._look_now.wait()
            except TimeoutError:
                continue
            # Whoever failed was told why; what ails Placement may need a moment.
            await asyncio.sleep(_AWAY_SECONDS)

    def _down(self, error: SevAgentError) -> None:
        self._up.clear()
        if self._health.down(Dependency.PLACEMENT, str(error)):
            log.warning("scheduler.placement.away", code=error.code, error=str(error))
