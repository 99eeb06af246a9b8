"""Whether the services that a daemon uses now and then would answer: asked before they are needed."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping

from sev_agent.errors import SevAgentError
from sev_agent.observe.health import Dependency, Health
from sev_agent.uninterrupted import raise_if_cancelled

_AGAIN_SECONDS = 3.0
_ANSWER_SECONDS = 5.0
_JITTER = 0.1

Question = Callable[[], Awaitable[object]]
"""Asks a service for something that it can only answer if it works; raises ``SevAgentError`` where it does not."""


class Lookout:
    """Asks each of ``questions`` every ``interval`` seconds, and soon again where there was no good answer.

    ``doubt`` has one asked at once: for whoever saw it fail.
    """

    def __init__(self, questions: Mapping[Dependency, Question], health: Health, *, interval: float) -> None:
        self._questions = dict(questions)
        self._health = health
        self._interval = interval
        self._doubts = {dependency: asyncio.Event() for dependency in questions}

    def doubt(self, dependency: Dependency) -> None:
        """Ask soon, if it counts as up: where it does not, that is done anyway."""
        if dependency in self._doubts and self._health.conditions[dependency].up:
            self._doubts[dependency].set()

    async def run(self) -> None:
        """Ask until cancelled."""
        async with asyncio.TaskGroup() as group:
            for dependency in self._questions:
                group.create_task(self._watch(dependency), name=f"lookout-{dependency}")

    async def _watch(self, dependency: Dependency) -> None:
        while True:
            raise_if_cancelled()
            fault = await self._fault(dependency)
            self._health.note(dependency, fault or None)
            # What was doubted meanwhile has been answered.
            self._doubts[dependency].clear()
            pause = _AGAIN_SECONDS if fault else self._interval
            try:
                async with asyncio.timeout(pause * random.uniform(1 - _JITTER, 1 + _JITTER)):
                    await self._doubts[dependency].wait()
            except TimeoutError:
                continue

    async def _fault(self, dependency: Dependency) -> str:
        """What is wrong with it, if anything."""
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                await self._questions[dependency]()
        except TimeoutError:
            return f"{dependency} did not answer within {_ANSWER_SECONDS:g} s"
        except SevAgentError as error:
            return str(error)
        return ""
