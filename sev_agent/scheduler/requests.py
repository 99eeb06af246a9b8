"""The requests of the schedulers' queue: each decided, told, and only then acknowledged."""

import asyncio
import time
from collections.abc import Mapping
from typing import Any, Final

import structlog
from pydantic import JsonValue

from sev_agent import schema
from sev_agent.errors import SevAgentError, Unavailable
from sev_agent.messaging import topology
from sev_agent.messaging.answering import Method
from sev_agent.messaging.broker import BrokerUnavailable
from sev_agent.messaging.client import RpcClient
from sev_agent.messaging.envelope import Priority, RequestContext
from sev_agent.messaging.notifications import Notifier
from sev_agent.messaging.wire_json import Arguments
from sev_agent.openstack.client import global_request_id
from sev_agent.openstack.exchange import Forbidden
from sev_agent.openstack.identity import AuthenticationFailed, EndpointMissing
from sev_agent.scheduler.claims import Contended
from sev_agent.scheduler.demand import Request
from sev_agent.scheduler.explanation import Counts, NoValidHost
from sev_agent.scheduler.metrics import SchedulerMetrics
from sev_agent.scheduler.placement_watch import PlacementWatch
from sev_agent.scheduler.placing import Placed, Placing

log = structlog.stdlib.get_logger(__name__)

_PATIENCE: Final = 20.0
"""Seconds that a request in hand waits for Placement before it goes back to the end of the queue."""

_CONTENDED_SECONDS: Final = 0.2
_MAX_TOLD: Final = 64
"""Characters of what stands in a refused request in place of a UUID, which may be anything."""

_AWAY: Final = (Unavailable, AuthenticationFailed, EndpointMissing, Forbidden)
"""What says nothing about the request, only that it cannot be decided now."""


class SchedulingRequests:
    """The handlers of the queue's methods. A request is never lost, and may be decided twice: that does no harm."""

    def __init__(
        self,
        *,
        placing: Placing,
        watch: PlacementWatch,
        client: RpcClient,
        notifier: Notifier,
        metrics: SchedulerMetrics,
        overhead_mb: int,
        patience: float = _PATIENCE,
    ) -> None:
        self._placing = placing
        self._watch = watch
        self._client = client
        self._notifier = notifier
        self._metrics = metrics
        self._overhead_mb = overhead_mb
        self._patience = patience

    def methods(self) -> tuple[Method[Any], ...]:
        return (
            Method(name="schedule_instance", arguments=schema.ScheduleArguments, handler=self.schedule),
            Method(name="reschedule_instance", arguments=schema.RescheduleArguments, handler=self.reschedule),
        )

    async def schedule(self, context: RequestContext, arguments: schema.ScheduleArguments) -> JsonValue:
        """Decide a request that no host has seen. Raises ``InvalidRequest``, ``BrokerUnavailable``."""
        return await self._handle("schedule_instance", context, arguments)

    async def reschedule(self, context: RequestContext, arguments: schema.RescheduleArguments) -> JsonValue:
        """Decide a request that a host could not carry out. Raises as ``schedule``."""
        return await self._handle("reschedule_instance", context, arguments)

    async def _handle(self, method: str, context: RequestContext, arguments: schema.ScheduleArguments) -> JsonValue:
        request = Request.of(arguments, overhead_mb=self._overhead_mb)
        global_request_id.set(context.request_id)
        with structlog.contextvars.bound_contextvars(instance_uuid=str(request.instance.uuid)):
            if not await self._decide(request, context):
                # Not given back to the broker: that counts against the delivery limit, and an outage may be long.
                # And to be understood by one that is older, too.
                again = arguments.model_dump(mode="json", exclude_defaults=True)
                version = schema.needed_version(arguments.instance)
                await self._client.cast(method, again, queue=topology.SCHEDULER_QUEUE, context=context, version=version)
                log.warning("scheduler.postponed")
        return None

    async def _decide(self, request: Request, context: RequestContext) -> bool:
        """Place ``request`` and tell what came of it; false where that cannot be decided for now."""
        started = time.monotonic()
        await self._tell("start", request, context)
        while await self._watch.wait_up(started + self._patience - time.monotonic()):
            try:
                placed = await self._placing.place(request, context)
            except BrokerUnavailable:
                raise
            except Contended as error:
                log.info("scheduler.contended", error=error.message)
                await asyncio.sleep(_CONTENDED_SECONDS)
            except NoValidHost as error:
                await self._refused(request, context, error, error.counts)
                break
            except _AWAY as error:
                self._watch.failed(error)
            except SevAgentError as error:
                await self._refused(request, context, error, {})
                break
            else:
                await self._placed(request, context, placed)
                break
        else:
            return False
        self._metrics.decision_seconds.observe(time.monotonic() - started)
        return True

    async def _placed(self, request: Request, context: RequestContext, placed: Placed) -> None:
        log.info("scheduler.placed", host=placed.host, **placed.counts)
        await self._tell("end", request, context, host=placed.host, counts=placed.counts)
        self._metrics.decisions.labels("placed", "").inc()

    async def _refused(self, request: Request, context: RequestContext, error: SevAgentError, counts: Counts) -> None:
        log.warning("scheduler.refused", code=error.code, error=str(error))
        await self._tell("error", request, context, fault=_fault(error), counts=dict(counts))
        self._metrics.decisions.labels("error", error.code).inc()

    async def _tell(self, phase: schema.Phase, request: Request, context: RequestContext, **details: Any) -> None:
        instance = request.instance
        payload = {
            "instance_uuid": str(instance.uuid),
            "project_id": instance.project_id,
            "tried": [attempt.model_dump(mode="json") for attempt in request.tried],
            **details,
        }
        await self._notify(phase, payload, context)

    async def _notify(self, phase: schema.Phase, payload: Mapping[str, Any], context: RequestContext) -> None:
        priority = Priority.ERROR if phase == "error" else Priority.INFO
        await self._notifier.notify(f"sev.instance.schedule.{phase}", payload, priority=priority, context=context)

    async def tell_rejected(
        self, context: RequestContext, method: str, arguments: Arguments | None, error: SevAgentError
    ) -> None:
        """Tell of a request that could not be understood, as an error of its instance where it names one."""
        del method
        instance = (arguments or {}).get("instance")
        given = instance if isinstance(instance, dict) else {}
        uuid, project = given.get("uuid"), given.get("project_id")
        payload: dict[str, Any] = {
            "instance_uuid": uuid[:_MAX_TOLD] if isinstance(uuid, str) else None,
            "project_id": project[:_MAX_TOLD] if isinstance(project, str) else None,
            "tried": [],
            "fault": _fault(error),
            "counts": {},
        }
        await self._notify("error", payload, context)
        self._metrics.decisions.labels("error", error.code).inc()


def _fault(error: SevAgentError) -> dict[str, str | None]:
    return {"code": error.code, "message": error.message, "field": error.field, "remedy": error.remedy}
