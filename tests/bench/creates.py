"""What a server costs over the whole way, from the tenant's request to the running guest: time, and processor time."""

import asyncio
import statistics
import time
from typing import Final

from tests.bench import control
from tests.bench.control import Control
from tests.bench.daemon import cpu_seconds, resident_mb
from tests.bench.result import Result
from tests.bench.stage import Made, Scene, Stage
from tests.e2e.waiting import eventually

RUNS: Final = 20
OVERHEAD_GOAL_MS: Final = 150.0
CPU_GOAL_S: Final = 0.25
API_GOAL_MB: Final = 120.0
SCHEDULER_GOAL_MB: Final = 70.0

_CALM_SECONDS = 1.0
_SETTLE_SECONDS = 120.0
_PARTS = ("api", "scheduler", "daemon")


async def one(stage: Stage) -> list[Result]:
    """From ``POST /servers`` to libvirt's STARTED, against define and create, by turns; and what computes for it."""
    created: list[float] = []
    bare: list[float] = []
    cpu: list[tuple[float, ...]] = []
    async with stage.scene() as scene, control.running(stage.lab) as parts:
        await _remove(scene, parts, (await _create(scene, parts))[0])
        for _ in range(RUNS):
            ready = await scene.bare.prepare()
            with scene.daemon.frozen():
                alone = await scene.create(*ready)
                await scene.remove([alone])
            made, computed = await _create(scene, parts)
            await _remove(scene, parts, made)
            bare.append(alone.seconds * 1000)
            created.append(made.seconds * 1000)
            cpu.append(computed)
        memory = {"api": resident_mb(parts.api), "scheduler": resident_mb(parts.scheduler)}
    floor = statistics.median(bare)
    overhead = [ours - theirs for ours, theirs in zip(created, bare, strict=True)]
    value = statistics.median(created) - floor
    boots = [sum(each) for each in cpu]
    return [
        Result.of("create.bare", bare, "ms"),
        Result.of("create.started", created, "ms", floor=floor),
        Result.of("create.overhead", overhead, "ms", value=value, floor=0, goal=OVERHEAD_GOAL_MS),
        Result.of("create.cpu", boots, "s", value=statistics.mean(boots), floor=0, goal=CPU_GOAL_S),
        *(
            Result.of(f"create.cpu-{part}", each, "s", value=statistics.mean(each))
            for part, each in zip(_PARTS, zip(*cpu, strict=True), strict=True)
        ),
        Result.of("create.api-memory", [memory["api"]], "MiB", goal=API_GOAL_MB),
        Result.of("create.scheduler-memory", [memory["scheduler"]], "MiB", goal=SCHEDULER_GOAL_MB),
    ]


async def _create(scene: Scene, parts: Control) -> tuple[Made, tuple[float, ...]]:
    """The guest, and what each part computed from the request until all of them are at rest again, in seconds."""
    before = _computed(scene, parts)
    begun = time.monotonic()
    uuid = await parts.operator.create("bench", image=scene.image.id, flavor=parts.flavor)
    made = await scene.started(uuid, begun)
    # Nobody asks meanwhile: the questions would be computed for too.
    await asyncio.sleep(_CALM_SECONDS)
    after = _computed(scene, parts)
    (server,) = await parts.operator.settled(uuid)
    assert server["status"] == "ACTIVE", server["fault"]
    return made, tuple(late - early for early, late in zip(before, after, strict=True))


def _computed(scene: Scene, parts: Control) -> tuple[float, ...]:
    return cpu_seconds(parts.api), cpu_seconds(parts.scheduler), scene.daemon.cpu_seconds()


async def _remove(scene: Scene, parts: Control, made: Made) -> None:
    path = f"/servers/{made.uuid}"
    assert (await parts.operator.ask("DELETE", path)).status == 204

    async def gone() -> bool:
        return (await parts.operator.ask("GET", path)).status == 404

    await eventually(gone, within=_SETTLE_SECONDS, what="the server is deleted")
    await scene.discard([])
