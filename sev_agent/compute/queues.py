"""What a host is asked by: its work queue, consumed only while it can work, and its query queue, consumed always."""

from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import Any, Final

from sev_agent.compute.refused_requests import RefusedRequests
from sev_agent.config import MessagingSection
from sev_agent.messaging import topology
from sev_agent.messaging.answering import Method, Outcome
from sev_agent.messaging.broker import Broker
from sev_agent.messaging.server import RpcServer
from sev_agent.messaging.work_gate import WorkGate
from sev_agent.observe.health import Dependency, Health
from sev_agent.observe.metrics import Metrics

STOP_SECONDS: Final = 5.0
"""How long a stop waits for the requests in hand."""

_HANDLER_SECONDS: Final = 30.0
_WORK_CONCURRENCY: Final = 32
_QUERY_CONCURRENCY: Final = 16


class Queues:
    """The two queues of ``host``. ``can_work`` says whether work may be taken; after a change of it, call ``look``."""

    def __init__(
        self,
        broker: Broker,
        settings: MessagingSection,
        host: str,
        *,
        work: Iterable[Method[Any]],
        queries: Iterable[Method[Any]],
        can_work: Callable[[], bool],
        refused: RefusedRequests,
        health: Health,
        metrics: Metrics,
    ) -> None:
        self._broker = broker
        self._settings = settings
        self._refused = refused
        self._health = health
        self._metrics = metrics
        self._work = self._server(
            topology.work_queue(host, delivery_limit=settings.delivery_limit),
            work,
            concurrency=_WORK_CONCURRENCY,
            paused=True,
            on_change=self._on_work,
        )
        self._queries = self._server(topology.query_queue(host), queries, concurrency=_QUERY_CONCURRENCY)
        self._gate = WorkGate(self._work, is_open=can_work)

    def look(self) -> None:
        """Note that ``can_work`` may say something else than before."""
        self._gate.look()

    def parts(self) -> Mapping[str, Coroutine[Any, Any, None]]:
        """What has to run for it, in the order in which it is to be started."""
        return {"rpc-queries": self._queries.run(), "rpc-work": self._work.run(), "work-gate": self._gate.run()}

    def _server(self, queue: topology.QueueSpec, methods: Iterable[Method[Any]], **options: Any) -> RpcServer:
        return RpcServer(
            self._broker,
            queue=queue,
            methods=methods,
            max_message_bytes=self._settings.max_message_bytes,
            handler_timeout=_HANDLER_SECONDS,
            stop_timeout=STOP_SECONDS,
            on_outcome=self._on_outcome,
            on_rejected=self._refused.tell,
            **options,
        )

    def _on_work(self, is_consumed: bool) -> None:  # noqa: FBT001 - the callback's one argument
        reason = self._work.fault or "it is not consumed while this host cannot work"
        self._health.note(Dependency.WORK_QUEUE, None if is_consumed else reason)

    def _on_outcome(self, method: str, outcome: Outcome) -> None:
        self._metrics.requests.labels(method, outcome.value).inc()
