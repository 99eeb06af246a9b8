"""The host daemon as a process that a test starts, asks over HTTP, signals and kills."""

import asyncio
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from sev_agent.lab.service import mark
from tests.e2e.waiting import eventually

READY_SECONDS = 30.0
_EXIT_SECONDS = 60.0
_COUNT_SECONDS = 30.0


class AgentProcess:
    """``sev-agent run`` with the lab's configuration, changed by variables of the environment."""

    def __init__(
        self, lab_directory: Path, config: Path, url: str, session: aiohttp.ClientSession, *, name: str = "agent"
    ) -> None:
        self.log = lab_directory / "log" / f"{name}.log"
        self._config = config
        self._url = url
        self._session = session
        self._mark = mark(lab_directory, "agent")
        self._process: asyncio.subprocess.Process | None = None
        self._settings: Mapping[str, str] = {}
        self._log_start = 0

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def has_defaults(self) -> bool:
        return self.is_running and not self._settings

    def has(self, settings: Mapping[str, str | float | Path]) -> bool:
        """Whether it runs with these settings and no other."""
        return self.is_running and self._settings == _variables(settings)

    async def start(self, **settings: str | float | Path) -> None:
        """Start it and wait until it is ready. ``settings`` are named ``section__key``."""
        await self.launch(**settings)
        await self.wait_ready()

    async def launch(self, **settings: str | float | Path) -> None:
        """Start it, and do not wait."""
        assert not self.is_running
        self._settings = _variables(settings)
        with self.log.open("ab") as output:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "sev_agent", "run", "--config", str(self._config)),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, **self._mark, **self._settings},
            )

    async def wait_ready(self, *, within: float = READY_SECONDS) -> None:
        async def ready() -> bool:
            assert self.is_running, f"the daemon ended:\n{self.said()[-3000:]}"
            return (await self.get("/readyz"))[0] == 200

        await eventually(ready, within=within, what="the daemon is ready")

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    async def wait(self, *, within: float = _EXIT_SECONDS) -> int:
        """Its exit status; negative for a signal."""
        assert self._process is not None
        return await asyncio.wait_for(self._process.wait(), within)

    async def stop(self) -> int:
        self.signal(signal.SIGTERM)
        return await self.wait()

    async def kill(self) -> None:
        self.signal(signal.SIGKILL)
        await self.wait()

    async def get(self, path: str) -> tuple[int, str]:
        """Status and body of its answer; status 0 when it does not answer."""
        try:
            async with self._session.get(f"{self._url}{path}") as answer:
                return answer.status, await answer.text()
        except aiohttp.ClientError:
            return 0, ""

    async def metrics(self) -> "Samples":
        status, text = await self.get("/metrics")
        assert status == 200
        return Samples(text)

    def forget_log(self) -> None:
        """Let ``said`` begin here; blocks shortly."""
        self._log_start = self.log.stat().st_size if self.log.exists() else 0

    def said(self) -> str:
        """Its log, of each of its lives; blocks shortly."""
        with self.log.open(errors="replace") as file:
            file.seek(self._log_start)
            return file.read()

    async def counted(self, before: "Samples", metric: str, *, times: int = 1, **labels: str) -> None:
        """Wait until ``times`` more are counted than ``before``: the last thing that it does about a request."""

        async def more() -> bool:
            count = (await self.metrics())(metric, **labels) - before(metric, **labels)
            assert count <= times
            return count == times

        await eventually(more, within=_COUNT_SECONDS, what=f"{times} more {metric} {labels}")


def _variables(settings: Mapping[str, str | float | Path]) -> dict[str, str]:
    return {f"SEV_AGENT_{name.upper()}": str(value) for name, value in settings.items()}


class Samples:
    """The metrics at one moment."""

    def __init__(self, text: str) -> None:
        self._samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]

    def __call__(self, metric: str, **labels: str) -> float:
        """The sum of the samples of ``metric`` that have ``labels``; 0 where there is none."""
        return sum(s.value for s in self._samples if s.name == metric and labels.items() <= s.labels.items())

    def labels(self, metric: str, label: str) -> set[Any]:
        """The values that ``label`` has in ``metric``."""
        return {s.labels[label] for s in self._samples if s.name == metric}

    @property
    def names(self) -> set[str]:
        return {s.name for s in self._samples}
