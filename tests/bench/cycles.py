"""What the daemon keeps of guests that are gone: memory over a thousand of them, built and deleted."""

import asyncio
import itertools
from typing import Final

from tests.bench.result import Result
from tests.bench.stage import Scene, Stage

CYCLES: Final = 1000
GROWTH_GOAL_MB: Final = 4.0
"""MiB. A daemon remembers for a day what it deleted, in about 1 KiB each."""

_AT_ONCE = 10
_STAGE = 100
_CALM_SECONDS = 5.0


async def thousand_guests(stage: Stage) -> list[Result]:
    """The daemon's memory while a thousand guests are built and deleted, ten at a time; after each hundred."""
    async with stage.scene() as scene:
        memory = []
        for done in range(_STAGE, CYCLES + 1, _STAGE):
            await _hundred(scene)
            memory.append(scene.daemon.resident_mb())
            stage.console.print(f"{done} guests: {memory[-1]:.1f} MiB")
        await asyncio.sleep(_CALM_SECONDS)
        memory.append(scene.daemon.resident_mb())
    grown = [later - earlier for earlier, later in itertools.pairwise(memory[:-1])]
    growth = memory[-1] - memory[0]
    return [
        Result.of("daemon.memory-over-1000-guests", memory, "MiB", value=max(memory)),
        Result.of("daemon.memory-growth-per-100-guests", grown, "MiB"),
        Result.of("daemon.memory-growth-over-900-guests", [growth], "MiB", floor=0, goal=GROWTH_GOAL_MB),
    ]


async def _hundred(scene: Scene) -> None:
    """Each goes its way at its own pace, so that the machine is never idle."""
    left = iter(range(_STAGE))

    async def one_after_the_other() -> None:
        for _ in left:
            await scene.discard([await scene.build()])

    async with asyncio.TaskGroup() as group:
        for _ in range(_AT_ONCE):
            group.create_task(one_after_the_other())
