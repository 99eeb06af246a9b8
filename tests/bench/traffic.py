"""What a daemon says of its requests to Placement."""

from dataclasses import dataclass
from typing import Self

import aiohttp

from tests.e2e.agent_process import Samples

_METRIC = "sev_agent_openstack_request_seconds_count"


@dataclass(frozen=True, slots=True)
class Requests:
    """How many it has made so far."""

    reads: float
    writes: float

    @classmethod
    async def counted(cls, url: str) -> Self:
        """By the daemon that serves its metrics at ``url``."""
        async with aiohttp.ClientSession() as session, session.get(f"{url}/metrics") as answer:
            samples = Samples(await answer.text())
        reads = samples(_METRIC, service="placement", method="GET")
        return cls(reads, samples(_METRIC, service="placement") - reads)

    def __sub__(self, other: Self) -> "Requests":
        return Requests(self.reads - other.reads, self.writes - other.writes)

    @property
    def total(self) -> float:
        return self.reads + self.writes
