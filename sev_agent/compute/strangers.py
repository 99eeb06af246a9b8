"""Consumers in a host's providers that nothing on the host knows: whose they are, and how long they may wait."""

import time
from collections.abc import Mapping
from uuid import UUID

from sev_agent.compute.allocation import Resources
from sev_agent.compute.holding import OURS
from sev_agent.compute.ledger import Ledger
from sev_agent.sev.generation import RESOURCE_CLASS
from sev_agent.sev.holdings import ConsumerType


class Strangers:
    """Tells which of the unknown consumers are not this host's to judge, or not yet.

    Where the tree is the agent's own, every unknown consumer is a leak, but for the claim of a scheduler whose request
    has not arrived: it has ``grace`` seconds from when it was first seen here (Placement does not tell when it was
    made). Beside Nova, all consumers are Nova's unless their type says that they are ours.
    """

    def __init__(self, ledger: Ledger, *, beside_nova: bool, grace: float) -> None:
        self._ledger = ledger
        self._beside_nova = beside_nova
        self._grace = grace
        self._novas: set[UUID] = set()
        self._waiting: dict[UUID, float] = {}

    @property
    def any_wait(self) -> bool:
        """Whether a claim waits for its request: then time alone may change what is right."""
        return bool(self._waiting)

    async def to_leave(self, unknown: Mapping[UUID, Mapping[UUID, Resources]]) -> frozenset[UUID]:
        """Those of ``unknown``, with what each holds by provider, that must be left as they are."""
        self._novas &= unknown.keys()
        unclear = [uuid for uuid, held in unknown.items() if not self._is_novas(uuid, held)]
        types = {uuid: await self._ledger.type_of(uuid) for uuid in unclear}
        if self._beside_nova:
            self._novas |= {uuid for uuid, kind in types.items() if kind not in OURS}
        now = time.monotonic()
        scheduled = [uuid for uuid, kind in types.items() if kind == ConsumerType.SCHEDULED]
        self._waiting = {uuid: self._waiting.get(uuid, now) for uuid in scheduled}
        early = {uuid for uuid, since in self._waiting.items() if now - since < self._grace}
        return frozenset(early | {uuid for uuid, held in unknown.items() if self._is_novas(uuid, held)})

    def _is_novas(self, uuid: UUID, held: Mapping[UUID, Resources]) -> bool:
        """Ours hold a slot while nothing here knows them; so only those with one are worth a question, and only one."""
        if not self._beside_nova:
            return False
        return uuid in self._novas or not any(RESOURCE_CLASS in amounts for amounts in held.values())
