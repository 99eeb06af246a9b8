"""How long the daemon takes to be of use, and to go."""

import asyncio
import statistics
import sys
import time
from typing import Final

from tests.bench.result import Result
from tests.bench.stage import Stage

RUNS: Final = 7
READY_GOAL_S: Final = 1.5
STOP_GOAL_S: Final = 2.0


async def start_and_stop(stage: Stage) -> list[Result]:
    """From the process's start until ``/readyz`` says yes, and from SIGTERM to its end, with nothing to do."""
    ready, stopped, floor = [], [], []
    for _ in range(RUNS):
        floor.append(await _interpreter_seconds())
        async with stage.daemon() as daemon:
            ready.append(await daemon.wait_ready())
            # Its first comparison with Placement ends with it being ready; let it come to rest.
            await asyncio.sleep(1)
            stopped.append(await daemon.stop())
    return [
        Result.of("daemon.start-to-ready", ready, "s", floor=statistics.median(floor), goal=READY_GOAL_S),
        Result.of("daemon.stop", stopped, "s", floor=0, goal=STOP_GOAL_S),
    ]


async def _interpreter_seconds() -> float:
    """A Python that imports asyncio and ends."""
    begun = time.monotonic()
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", "import asyncio")
    await process.wait()
    return time.monotonic() - begun
