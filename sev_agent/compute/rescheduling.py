"""A build that failed here and may succeed elsewhere, handed back to the schedulers."""

from typing import Final

import structlog

from sev_agent.compute.record import Fault, Record
from sev_agent.crash_points import CrashPoint, reached
from sev_agent.messaging import topology
from sev_agent.messaging.broker import Unroutable
from sev_agent.messaging.client import RpcClient
from sev_agent.messaging.envelope import RequestContext
from sev_agent.schema import Attempt, Instance, Scheduling, needed_version
from sev_agent.sev.generation import Generation

log = structlog.stdlib.get_logger(__name__)

_MAX_CODE: Final = 255
_MAX_MESSAGE: Final = 4000
_MAX_TRIED: Final = 16
"""What ``reschedule_instance`` takes. The schedulers give up long before."""


class Rescheduling:
    """Tells the schedulers what ``host`` could not build. To tell it twice does no harm: Placement knows who has it."""

    def __init__(self, client: RpcClient, host: str) -> None:
        self._client = client
        self._host = host

    def concerns(self, record: Record) -> bool:
        """Whether another host may end what failed here: a scheduler sent it, and this host is at fault."""
        return record.scheduling is not None and record.fault is not None and record.fault.retryable

    async def pass_on(self, record: Record) -> bool:
        """Cast the failed build of ``record``; whether that is another's to end now. Nothing of it may be left here.

        It is not where ``concerns`` says so, and where no scheduler has ever run. Raises ``BrokerUnavailable``.
        """
        if record.scheduling is None or record.fault is None or not self.concerns(record):
            return False
        return await self._cast(record.instance, record.scheduling, record.fault, record.generation, record.request_id)

    async def send_back(self, record: Record, instance: Instance, scheduling: Scheduling, request_id: str) -> bool:
        """Cast a build that came again though ``record`` says that it was passed on; whether it is another's now.

        Raises ``BrokerUnavailable``.
        """
        assert record.fault is not None, "a build is passed on because it failed"
        return await self._cast(instance, scheduling, record.fault, record.generation, request_id)

    async def _cast(
        self, instance: Instance, scheduling: Scheduling, fault: Fault, generation: Generation | None, request_id: str
    ) -> bool:
        mine = Attempt(host=self._host, code=fault.code[:_MAX_CODE], message=fault.message[:_MAX_MESSAGE])
        tried = [attempt for attempt in scheduling.tried if attempt.host != self._host]
        arguments = {
            # Schedulers may be older than this host: what is not said they need not know.
            "instance": instance.model_dump(mode="json", exclude_defaults=True),
            "host": scheduling.forced_host,
            "generation": generation,
            "tried": [attempt.model_dump(mode="json") for attempt in [*tried, mine][-_MAX_TRIED:]],
        }
        reached(CrashPoint.RESCHEDULE_BEFORE_CAST)
        try:
            await self._client.cast(
                "reschedule_instance",
                arguments,
                queue=topology.SCHEDULER_QUEUE,
                version=needed_version(instance),
                context=RequestContext(request_id=request_id, project_id=instance.project_id or None),
            )
        except Unroutable:
            log.warning("instance.reschedule.unroutable", instance_uuid=str(instance.uuid))
            return False
        reached(CrashPoint.RESCHEDULE_AFTER_CAST)
        log.info("instance.rescheduled", instance_uuid=str(instance.uuid), code=fault.code, tried=len(tried) + 1)
        return True
