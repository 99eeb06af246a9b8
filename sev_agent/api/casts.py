"""What the API asks of schedulers and hosts over RabbitMQ."""

from typing import Any

from pydantic import JsonValue

from sev_agent.api.tables import ServerRow
from sev_agent.errors import Unavailable
from sev_agent.messaging import topology
from sev_agent.messaging.broker import Unroutable
from sev_agent.messaging.client import QueueUse, RpcClient
from sev_agent.messaging.envelope import RequestContext


class NoScheduler(Unavailable):
    """The schedulers' queue, which the first of them makes, is not there."""

    code = "scheduler.never_ran"


class Casts:
    """Each returns once the broker keeps it, and raises ``BrokerUnavailable`` or ``Unroutable``.

    Times are seconds.
    """

    def __init__(self, rpc: RpcClient, *, call_timeout: float) -> None:
        self._rpc = rpc
        self._call_timeout = call_timeout

    async def schedule(self, row: ServerRow) -> None:
        """Have a host found for it. ``row.request`` must be loaded. Raises ``NoScheduler`` for ``Unroutable``."""
        arguments = {"instance": row.request["instance"], "host": row.forced_host}
        arguments["generation"] = row.request["generation"]
        try:
            await self._rpc.cast("schedule_instance", arguments, queue=topology.SCHEDULER_QUEUE, context=_context(row))
        except Unroutable as error:
            raise NoScheduler(
                "no scheduler has ever run on this RabbitMQ, so no host can be found",
                remedy="start sev-agent scheduler, with the same messaging.url",
            ) from error

    async def terminate(self, row: ServerRow, host: str) -> bool:
        """Have it deleted there. False where that host has left for good: then there is nothing to delete."""
        try:
            await self._order("terminate_instance", row, host)
        except Unroutable:
            return False
        return True

    async def power(self, method: str, row: ServerRow, **more: Any) -> None:
        """``start_instance``, ``stop_instance`` or ``reboot_instance``, on its host."""
        assert row.host is not None, "a server that was built has a host"
        await self._order(method, row, row.host, **more)

    async def ask(self, method: str, server_id: str, host: str, **more: Any) -> JsonValue:
        """A question. Raises also ``RemoteError`` and ``MessagingTimeout``."""
        queue = topology.query_queue_name(host)
        return await self._rpc.call(
            method, {"instance_uuid": server_id, **more}, queue=queue, timeout=self._call_timeout
        )

    async def host_takes(self, host: str) -> QueueUse:
        """How the queue of what ``host`` is to do is used. Raises ``BrokerUnavailable``."""
        return await self._use(topology.work_queue_name(host))

    async def schedulers_take(self) -> QueueUse:
        """How the schedulers' queue is used. Raises ``BrokerUnavailable``."""
        return await self._use(topology.SCHEDULER_QUEUE)

    async def _use(self, queue: str) -> QueueUse:
        return await self._rpc.queue_use(queue) or QueueUse(consumers=0, waiting=0)

    async def _order(self, method: str, row: ServerRow, host: str, **more: Any) -> None:
        arguments = {"instance_uuid": row.id, **more}
        await self._rpc.cast(method, arguments, queue=topology.work_queue_name(host), context=_context(row))


def _context(row: ServerRow) -> RequestContext:
    return RequestContext(request_id=row.request_id, user_id=row.user_id, project_id=row.project_id)
