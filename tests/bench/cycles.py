"""What the daemon keeps of guests that are gone: memory over a thousand of them, built and deleted."""

import asyncio
from typing import Final

from tests.bench.result import Result
from tests.bench.stage import Stage

CYCLES: Final = 1000
GROWTH_GOAL_MB: Final = 8.0
"""MiB. A daemon remembers for a day what it deleted, in about 5 KiB each."""

_AT_ONCE = 10
_WARM = 100
_CALM_SECONDS = 5.0


async def thousand_guests(stage: Stage) -> list[Result]:
    """The daemon's memory while a thousand guests are built and deleted, ten at a time."""
    async with stage.scene() as scene:
        memory = []
        for done in range(_AT_ONCE, CYCLES + 1, _AT_ONCE):
            await scene.discard(await asyncio.gather(*(scene.build() for _ in range(_AT_ONCE))))
            if done % _WARM == 0:
                memory.append(scene.daemon.resident_mb())
                stage.console.print(f"{done} guests: {memory[-1]:.1f} MiB")
        await asyncio.sleep(_CALM_SECONDS)
        memory.append(scene.daemon.resident_mb())
    growth = memory[-1] - memory[0]
    return [
        Result.of("daemon.memory-over-1000-guests", memory, "MiB", value=max(memory)),
        Result.of("daemon.memory-growth-over-900-guests", [growth], "MiB", floor=0, goal=GROWTH_GOAL_MB),
    ]
