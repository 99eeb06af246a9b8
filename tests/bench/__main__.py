"""``python -m tests.bench [NAME...]``: measure, print the table, write build/bench.json.

It judges nothing by its exit status: what misses its goal is marked, and the machine may have been busy.
"""

import argparse
import asyncio
import os
import sys
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Final

from rich.console import Console

from sev_agent import log
from sev_agent.config import LogSection
from sev_agent.lab.cloud import Lab
from sev_agent.lab.progress import OnConsole
from tests.bench import api, builds, claims, creates, cycles, footprint, lifetime, scale
from tests.bench.guests import upload_image
from tests.bench.result import Result, table, write
from tests.bench.stage import SLOTS, Stage

BENCHMARKS: Final[Mapping[str, Callable[[Stage], Awaitable[list[Result]]]]] = {
    "lifetime": lifetime.start_and_stop,
    "build": builds.one,
    "builds-at-once": builds.crowd,
    "create": creates.one,
    "claims": claims.placed,
    "idle": footprint.idle,
    "scale": scale.thousand_guests,
    "cycles": cycles.thousand_guests,
    "api": api.thousand_servers,
}

_OUTPUT = Path("build/bench.json")
_WIDE = 120
_CACHE_VARIABLE = "SEV_AGENT_LAB_CACHE"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"what to measure: {', '.join(BENCHMARKS)}; or all")
    parser.add_argument("--lab", type=Path, help="use the lab in this directory, made for it if need be, and leave it")
    parser.add_argument("--output", type=Path, default=_OUTPUT, help="where the JSON goes (default: %(default)s)")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - BENCHMARKS.keys():
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}; there are {', '.join(BENCHMARKS)}")
    log.configure(LogSection(level="error"))
    # A file or a pipe has no width to keep to.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else _WIDE)
    results = asyncio.run(_measure(arguments.names or list(BENCHMARKS), arguments.lab, console))
    write(results, arguments.output)
    console.print(table(results))
    console.print(f"\nAll of one run, on {os.cpu_count()} processors; also in {arguments.output}.")


async def _measure(names: list[str], kept: Path | None, console: Console) -> list[Result]:
    with tempfile.TemporaryDirectory(prefix="sev-bench-") as temporary:
        lab = await _lab(kept or Path(temporary), console)
        try:
            image = await upload_image(lab)
            return await _run(names, Stage(lab=lab, host=lab.hosts[0], image=image, console=console))
        finally:
            if kept is None:
                await lab.down(purge=True)


async def _lab(directory: Path, console: Console) -> Lab:
    cache = os.environ.get(_CACHE_VARIABLE)
    with OnConsole(console) as progress:
        lab = Lab(directory, cache=Path(cache) if cache else None, progress=progress)
        await lab.up(hosts=1, agents=False, slots=SLOTS)
    return lab


async def _run(names: list[str], stage: Stage) -> list[Result]:
    results: list[Result] = []
    for name in names:
        stage.console.print(f"measuring {name}: {(BENCHMARKS[name].__doc__ or '').strip()}")
        results += await BENCHMARKS[name](stage)
    return results


if __name__ == "__main__":
    main()
