"""What the daemon takes while nothing is asked of it, with guests to watch over; and what a build asks of Placement.

The guests are encrypted domains that the daemon built itself; their processors are stopped after the start. To libvirt
and to the daemon they are active all the same, and the machine's processors are left to what is measured.
"""

import asyncio
import statistics
import sys
from typing import Final

from sev_agent.schema import RECONCILE_SECONDS
from tests.bench.daemon import Daemon, resident_mb
from tests.bench.result import Result
from tests.bench.stage import Made, Scene, Stage
from tests.bench.traffic import Requests

GUESTS: Final = 20
MEMORY_GOAL_MB: Final = 80.0
CPU_GOAL_PERCENT: Final = 0.5
READS_GOAL: Final = 1.0
"""Of Placement, in a minute."""

_WINDOWS = 4
_WINDOW_SECONDS = 30.0
_CALM_SECONDS = 5.0
_FEW = 5


async def idle(stage: Stage) -> list[Result]:
    """Memory, processor time and requests to Placement over two minutes with twenty guests, and of each build."""
    url = stage.lab.http_url(stage.host)
    made: list[Made] = []
    async with stage.scene() as scene:
        calls = [await _calls_of_a_build(scene, url, made) for _ in range(GUESTS)]
        # The first comparison after a change looks at the whole once more: that is no idle minute's.
        await scene.remote.ask_long("reconcile", limit=RECONCILE_SECONDS, dry_run=False)
        await asyncio.sleep(_CALM_SECONDS)
        before = await Requests.counted(url)
        stage.console.print(f"watching the daemon for {_WINDOWS * _WINDOW_SECONDS:.0f} s")
        memory, cpu = [], []
        for _ in range(_WINDOWS):
            memory.append(scene.daemon.resident_mb())
            cpu.append(await _cpu_percent(scene.daemon))
        memory.append(scene.daemon.resident_mb())
        asked = await Requests.counted(url) - before
        await scene.discard(made)
    minutes = _WINDOWS * _WINDOW_SECONDS / 60
    alone = statistics.median(calls[:_FEW])
    return [
        Result.of(
            "daemon.memory",
            memory,
            "MiB",
            value=max(memory),
            floor=await _interpreter_mb(),
            goal=MEMORY_GOAL_MB,
        ),
        Result.of("daemon.idle-cpu", cpu, "%", value=sum(cpu) / len(cpu), floor=0, goal=CPU_GOAL_PERCENT),
        Result.of("daemon.idle-reads", [asked.reads / minutes], "/min", floor=0, goal=READS_GOAL),
        Result.of("daemon.idle-writes", [asked.writes / minutes], "/min", floor=0, goal=0),
        Result.of("build.requests", calls[:_FEW], "calls"),
        Result.of("build.requests-beside-20", calls[-_FEW:], "calls", floor=alone, goal=alone),
    ]


async def _calls_of_a_build(scene: Scene, url: str, made: list[Made]) -> float:
    """Requests to Placement, for one guest more than are ``made``."""
    before = await Requests.counted(url)
    built = await scene.build()
    await scene.settle(built)
    made.append(built)
    return (await Requests.counted(url) - before).total


async def _cpu_percent(daemon: Daemon) -> float:
    """Percent of one processor."""
    before = daemon.cpu_seconds()
    await asyncio.sleep(_WINDOW_SECONDS)
    return (daemon.cpu_seconds() - before) / _WINDOW_SECONDS * 100


async def _interpreter_mb() -> float:
    """The memory of a Python that has imported asyncio and waits."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        "import asyncio; print(flush=True); input()",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    await process.stdout.readline()
    found = resident_mb(process.pid)
    await process.communicate(b"\n")
    return found
