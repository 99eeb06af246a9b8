"""What the daemon takes while nothing is asked of it: memory and processor time, with guests to watch over.

The guests are encrypted domains that the daemon built itself; their processors are stopped after the start. To libvirt
and to the daemon they are active all the same, and the machine's processors are left to what is measured.
"""

import asyncio
import sys
from typing import Final

from tests.bench.daemon import Daemon, resident_mb
from tests.bench.result import Result
from tests.bench.stage import Stage

GUESTS: Final = 20
MEMORY_GOAL_MB: Final = 80.0
CPU_GOAL_PERCENT: Final = 0.5

_WINDOWS = 4
_WINDOW_SECONDS = 30.0
_CALM_SECONDS = 5.0


async def idle(stage: Stage) -> list[Result]:
    """Memory and processor time over two minutes with twenty guests."""
    async with stage.scene() as scene:
        made = [await scene.build() for _ in range(GUESTS)]
        await asyncio.sleep(_CALM_SECONDS)
        stage.console.print(f"watching the daemon for {_WINDOWS * _WINDOW_SECONDS:.0f} s")
        memory, cpu = [], []
        for _ in range(_WINDOWS):
            memory.append(scene.daemon.resident_mb())
            cpu.append(await _cpu_percent(scene.daemon))
        memory.append(scene.daemon.resident_mb())
        await scene.discard(made)
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
    ]


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
