"""One request placed: claimed on the best host that is alive, and that host told."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import structlog

from sev_agent.crash_points import CrashPoint, reached
from sev_agent.messaging import topology
from sev_agent.messaging.broker import Unroutable
from sev_agent.messaging.client import RpcClient
from sev_agent.messaging.envelope import RequestContext
from sev_agent.openstack.placement import Allocation, Full, PlacementRefused
from sev_agent.scheduler.aliveness import Aliveness
from sev_agent.scheduler.claims import Claims, Contended
from sev_agent.scheduler.demand import MAX_HOSTS, Request
from sev_agent.scheduler.explanation import explain
from sev_agent.scheduler.fleet import Fleet
from sev_agent.scheduler.host_names import HostNames
from sev_agent.scheduler.options import Look, Option, Options
from sev_agent.scheduler.weighing import Strategy, best_first
from sev_agent.schema import Scheduling
from sev_agent.sev.holdings import ConsumerType

log = structlog.stdlib.get_logger(__name__)

_FRESH: Final = 1.0
"""Seconds that a look at Placement may be old for a first try. A refusal always follows from a newer one."""

_AT_ONCE: Final = 16
"""Hosts that the broker is asked about at a time, the best ones first."""

_ROUNDS: Final = 3
"""How often a claim that was there already, on a host that cannot be used, is given back and made anew."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """Where an instance goes. ``counts`` tell from how many: that could take it, that of these were alive."""

    host: str
    counts: dict[str, int]


class Placing:
    """Chooses, claims and tells. ``on_claim`` is told how each attempt to claim ended.

    Safe to be done again, here or elsewhere, after any crash: what Placement holds for the instance says how far it
    came.
    """

    def __init__(
        self,
        *,
        options: Options,
        names: HostNames,
        claims: Claims,
        aliveness: Aliveness,
        fleet: Fleet,
        client: RpcClient,
        strategy: Strategy,
        on_claim: Callable[[str], None],
    ) -> None:
        self._options = options
        self._names = names
        self._claims = claims
        self._aliveness = aliveness
        self._fleet = fleet
        self._client = client
        self._strategy = strategy
        self._on_claim = on_claim

    async def place(self, request: Request, context: RequestContext) -> Placed:
        """Claim a host for ``request`` and tell it; return once the broker keeps the message.

        Raises ``NoValidHost``, ``Unavailable`` where Placement or the broker is away, and what Placement refuses.
        """
        arrived, seen = time.monotonic(), None
        for since in (arrived - _FRESH, arrived) if len(request.tried) < MAX_HOSTS else ():
            look = await self._options.look(request.demand, since=since)
            if look is not seen and (placed := await self._among(look, request, context)) is not None:
                return placed
            seen = look
        # This request came before, and took the last slot itself; or a twin of it did.
        held = await self._claims.held_by(request.instance.uuid)
        if held is not None and (host := await self._take_over(held, request, context)) is not None:
            return Placed(host=host, counts={})
        raise explain(request, await self._fleet.counts(request))

    async def _among(self, look: Look, request: Request, context: RequestContext) -> Placed | None:
        """Try the hosts of ``look``, the best first, until one can be claimed and told."""
        left = [option for option in look.options if request.may_use(option.host)]
        counts = {"candidates": len(left), "dead": 0}
        while left := [option for option in left if not option.gone]:
            best = best_first(self._strategy, left)[:_AT_ONCE]
            alive = await self._aliveness.among(option.host for option in best)
            dead = {option.host for option in best} - alive
            counts["dead"] += len(dead)
            left = [option for option in left if option.host not in dead]
            # Others have claimed meanwhile.
            ready = [option for option in best if option.host in alive and not option.gone]
            if not ready:
                continue
            option = best_first(self._strategy, ready)[0]
            left.remove(option)
            counts["free_slots"] = option.free_slots
            host = await self._try(option, request, context)
            if host is not None:
                return Placed(host=host, counts=counts)
        return None

    async def _try(self, option: Option, request: Request, context: RequestContext) -> str | None:
        """The host that has the request now: that of ``option``, or the one where it was claimed before."""
        uuid = request.instance.uuid
        for _ in range(_ROUNDS):
            try:
                with option.taken():
                    held = await self._claims.make(request.instance, option.resources)
                    reached(CrashPoint.SCHEDULE_AFTER_CLAIM)
                    if held is None and await self._tell(option.host, request, context):
                        self._on_claim("claimed")
                        option.free_slots -= 1
                        return option.host
            except (Full, PlacementRefused) as error:
                option.gone = True
                self._on_claim("full" if isinstance(error, Full) else "gone")
                log.debug("scheduler.claim.refused", host=option.host, code=error.code, error=error.message)
                return None
            if held is None:
                self._on_claim("unroutable")
                await self._claims.give_back(uuid, option.resources)
                return None
            self._on_claim("held")
            if (host := await self._take_over(held, request, context)) is not None:
                return host
        raise Contended(f"instance {uuid} is claimed by others again and again", remedy="it is tried again")

    async def _take_over(self, held: Allocation, request: Request, context: RequestContext) -> str | None:
        """Go on from what ``held`` says: the host that has the request now, or none where the claim was given back."""
        host = await self._names.of_tree(held.resources)
        if held.consumer_type != ConsumerType.SCHEDULED:
            # The host has taken it over.
            return host
        # Whoever made the claim may have told the host or not. To tell it twice does no harm, to tell another would.
        if host is not None and request.may_use(host) and await self._tell(host, request, context):
            log.info("scheduler.claim.found", instance_uuid=str(request.instance.uuid), host=host)
            return host
        await self._claims.give_back(request.instance.uuid, held.resources)
        return None

    async def _tell(self, host: str, request: Request, context: RequestContext) -> bool:
        """Cast to ``host``; whether its queue took it. Raises ``BrokerUnavailable``."""
        scheduling = Scheduling(forced_host=request.forced_host, tried=request.tried)
        arguments = {
            "instance": request.instance.model_dump(mode="json"),
            "scheduling": scheduling.model_dump(mode="json"),
        }
        try:
            await self._client.cast(
                "build_and_run_instance", arguments, queue=topology.work_queue_name(host), context=context
            )
        except Unroutable:
            return False
        reached(CrashPoint.SCHEDULE_AFTER_CAST)
        return True
