"""The parts of a daemon, run by a test for as long as it needs them."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine
from typing import Any, Protocol

from sev_agent.messaging.broker import Broker

PATIENCE = 60.0
"""Seconds that anything may take on a machine that is busy with something else."""


class Component(Protocol):
    """What works until it is cancelled."""

    def run(self) -> Coroutine[Any, Any, None]: ...


@contextlib.asynccontextmanager
async def running(*components: Component) -> AsyncIterator[None]:
    """Run ``components`` for as long as the context is open. They are stopped in reverse order, one after the other."""
    tasks = [asyncio.create_task(component.run(), name=type(component).__name__) for component in components]
    try:
        yield
    finally:
        for task in reversed(tasks):
            task.cancel()
            await asyncio.wait({task}, timeout=PATIENCE)
            assert task.done(), f"{task.get_name()} does not stop"


@contextlib.asynccontextmanager
async def connected(url: str) -> AsyncIterator[Broker]:
    """A connection to RabbitMQ at ``url``, which is up."""
    broker = Broker(url, connection_name="tests", connect_timeout=5, reconnect_max=0.5, publish_timeout=5)
    async with running(broker):
        await broker.wait_up(PATIENCE)
        yield broker
