"""What a build costs beside what libvirt itself takes to define and start the very same domain.

The daemon is frozen while libvirt is alone: it would count the guests that somebody else starts, as it should.
"""

import asyncio
import statistics
import time
from collections.abc import Sequence
from typing import Final

from tests.bench.result import Result
from tests.bench.stage import Made, Stage

RUNS: Final = 20
OVERHEAD_GOAL_MS: Final = 60.0

CROWD: Final = 10
CROWD_RUNS: Final = 5
CROWD_GOAL: Final = 1.1


async def one(stage: Stage) -> list[Result]:
    """From the publish of a build to libvirt's STARTED, against define and create; one after the other, by turns."""
    built: list[float] = []
    bare: list[float] = []
    async with stage.scene() as scene:
        for _ in range(RUNS):
            ready = await scene.bare.prepare()
            with scene.daemon.frozen():
                alone = await scene.create(*ready)
                await scene.remove([alone])
            made = await scene.build()
            await scene.discard([made])
            bare.append(alone.seconds * 1000)
            built.append(made.seconds * 1000)
    floor = statistics.median(bare)
    overhead = [ours - theirs for ours, theirs in zip(built, bare, strict=True)]
    return [
        Result.of("build.bare", bare, "ms"),
        Result.of("build.started", built, "ms", floor=floor),
        Result.of(
            "build.overhead",
            overhead,
            "ms",
            value=statistics.median(built) - floor,
            floor=0,
            goal=OVERHEAD_GOAL_MS,
        ),
    ]


async def crowd(stage: Stage) -> list[Result]:
    """Ten builds at once until the last has STARTED, against ten bare creates at once."""
    built: list[float] = []
    bare: list[float] = []
    async with stage.scene() as scene:
        for _ in range(CROWD_RUNS):
            ready = [await scene.bare.prepare() for _ in range(CROWD)]
            with scene.daemon.frozen():
                begun = time.monotonic()
                alone = await asyncio.gather(*(scene.create(uuid, xml) for uuid, xml in ready))
                bare.append(_last(alone) - begun)
                await scene.remove(alone)
            begun = time.monotonic()
            made = await asyncio.gather(*(scene.build() for _ in range(CROWD)))
            built.append(_last(made) - begun)
            await scene.discard(made)
    ratios = [ours / theirs for ours, theirs in zip(built, bare, strict=True)]
    ratio = statistics.median(built) / statistics.median(bare)
    return [
        Result.of("builds-at-once.bare", bare, "s"),
        Result.of("builds-at-once.started", built, "s", floor=statistics.median(bare)),
        Result.of("builds-at-once.ratio", ratios, "x", value=ratio, floor=1, goal=CROWD_GOAL),
    ]


def _last(made: Sequence[Made]) -> float:
    return max(each.started for each in made)
