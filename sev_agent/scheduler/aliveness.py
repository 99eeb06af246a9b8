"""Which hosts are alive: those whose work queue has a consumer, as the broker tells."""

import asyncio
import time
from collections.abc import Iterable
from typing import Final

from sev_agent.messaging import topology
from sev_agent.messaging.client import RpcClient

_BELIEVED: Final = 1.0
"""Seconds for which an answer is not asked for again."""

_AT_ONCE: Final = 32
"""Channels that one scheduler opens for it; a connection has 2,047 by default."""


class Aliveness:
    """Asks the broker, many hosts at once, and remembers for a second."""

    def __init__(self, client: RpcClient) -> None:
        self._client = client
        self._known: dict[str, tuple[float, bool]] = {}
        self._asking: dict[str, asyncio.Lock] = {}
        self._gate = asyncio.Semaphore(_AT_ONCE)

    async def among(self, hosts: Iterable[str]) -> frozenset[str]:
        """Those of ``hosts`` that are alive. Raises ``BrokerUnavailable``."""
        asked = tuple(dict.fromkeys(hosts))
        answers = await asyncio.gather(*(self._is_alive(host) for host in asked))
        return frozenset(host for host, alive in zip(asked, answers, strict=True) if alive)

    async def _is_alive(self, host: str) -> bool:
        # One asks, the others wait for the answer.
        async with self._asking.setdefault(host, asyncio.Lock()):
            since, alive = self._known.get(host, (float("-inf"), False))
            if time.monotonic() - since < _BELIEVED:
                return alive
            async with self._gate:
                asked_at = time.monotonic()
                alive = bool(await self._client.consumer_count(topology.work_queue_name(host)))
            self._known[host] = (asked_at, alive)
            return alive
