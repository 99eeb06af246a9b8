"""What the scenarios of death play on: all of the lab, and a daemon that dies where it is told."""

import signal
from collections.abc import Mapping
from dataclasses import dataclass, field

from sev_agent.crash_points import VARIABLE
from tests.faults.conftest import World

_ARMED = VARIABLE.removeprefix("SEV_AGENT_").lower()
_DEATH_SECONDS = 60.0


@dataclass(kw_only=True)
class Stage(World):
    """What each scenario plays on. ``doomed`` is what the daemon's next life is told, where it has to die.

    ``settings`` are those of all its lives, beside the usual ones.
    """

    doomed: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)

    async def up(self) -> None:
        """A daemon that does not die."""
        await self.start(**self.settings)

    async def doom(self) -> None:
        """A daemon that dies where it shall, perhaps before it is ready."""
        if self.agent.is_running:
            assert await self.agent.stop() == 0
        await self.agent.launch(**{**self.usual, **self.settings, _ARMED: self.doomed})

    async def ready_to_die(self) -> None:
        """A daemon that dies where it shall, and is ready before that."""
        await self.doom()
        await self.agent.wait_ready()

    async def died(self) -> None:
        status = await self.agent.wait(within=_DEATH_SECONDS)
        assert status == -signal.SIGKILL, f"exit status {status}:\n{self.agent.said()[-3000:]}"
