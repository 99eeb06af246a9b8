"""The scheduler daemon: its parts made and connected, in one place."""

import os
import socket
from collections.abc import Iterator
from contextlib import AsyncExitStack

import aiohttp
import structlog

from sev_agent import __version__
from sev_agent.config import SchedulerConfig
from sev_agent.messaging import topology
from sev_agent.messaging.answering import Outcome
from sev_agent.messaging.broker import Broker
from sev_agent.messaging.client import RpcClient
from sev_agent.messaging.notifications import Notifier
from sev_agent.messaging.server import RpcServer
from sev_agent.messaging.work_gate import WorkGate
from sev_agent.observe.health import Dependency, Health
from sev_agent.observe.http import HttpEndpoints
from sev_agent.observe.page import StatusPage, Table, counted
from sev_agent.openstack.identity import identify
from sev_agent.openstack.placement import Placement
from sev_agent.scheduler.aliveness import Aliveness
from sev_agent.scheduler.claims import Claims
from sev_agent.scheduler.fleet import Fleet
from sev_agent.scheduler.host_names import HostNames
from sev_agent.scheduler.metrics import SchedulerMetrics
from sev_agent.scheduler.options import Options
from sev_agent.scheduler.placement_watch import PlacementWatch
from sev_agent.scheduler.placing import Placing
from sev_agent.scheduler.requests import SchedulingRequests
from sev_agent.service import ServiceManager, Supervisor, feed_watchdog

log = structlog.stdlib.get_logger(__name__)

_HANDLER_SECONDS = 120.0
"""For one request in hand: its patience, and the slowest answers of Placement on top."""

_TASK_STOP_SECONDS = 5.0
_BROKER_TASK = "broker"


async def run_scheduler(config: SchedulerConfig) -> None:
    """Run the daemon until SIGTERM or SIGINT. Raises what made it stop otherwise."""
    manager = ServiceManager(os.environ)
    supervisor = Supervisor(
        stop_timeout=config.scheduler.stop_timeout + _TASK_STOP_SECONDS,
        on_stop=lambda: manager.notify(STOPPING=1, STATUS="stopping"),
    )
    supervisor.stop_on_signals()
    log.info("scheduler.starting", version=__version__, name=config.scheduler.name)
    async with AsyncExitStack() as closing:
        session = await closing.enter_async_context(aiohttp.ClientSession())
        scheduler = _Scheduler(config, session, manager, supervisor)
        scheduler.start()
        await supervisor.wait()


class _Scheduler:
    """Everything of one daemon."""

    def __init__(
        self,
        config: SchedulerConfig,
        session: aiohttp.ClientSession,
        manager: ServiceManager,
        supervisor: Supervisor,
    ) -> None:
        self._config = config
        self._manager = manager
        self._supervisor = supervisor
        self._metrics = SchedulerMetrics()
        self._health = Health((Dependency.BROKER, Dependency.PLACEMENT), on_change=self._on_health)
        self._was_ready = False

        on_request = self._metrics.count_request
        identity = identify(config.auth, session, on_request=on_request)
        placement = Placement(session, identity, config.placement, on_request=on_request)
        self._watch = PlacementWatch(placement, self._health)

        name = config.scheduler.name
        self._broker = Broker(
            config.messaging.url.get_secret_value(),
            connection_name=f"sev-agent scheduler {name}, process {os.getpid()} on {socket.gethostname()}",
            connect_timeout=config.messaging.connect_timeout,
            reconnect_max=config.messaging.reconnect_max,
            publish_timeout=config.messaging.publish_timeout,
            on_change=self._on_broker,
        )
        client = RpcClient(self._broker, max_message_bytes=config.messaging.max_message_bytes)
        names = HostNames(placement)
        aliveness = Aliveness(client)
        placing = Placing(
            options=Options(placement, names, limit=config.scheduler.max_candidates),
            names=names,
            claims=Claims(placement),
            aliveness=aliveness,
            fleet=Fleet(placement, aliveness, max_candidates=config.scheduler.max_candidates),
            client=client,
            strategy=config.scheduler.strategy,
            on_claim=lambda outcome: self._metrics.claims.labels(outcome).inc(),
        )
        requests = SchedulingRequests(
            placing=placing,
            watch=self._watch,
            client=client,
            notifier=Notifier(self._broker, publisher_id=f"sev_scheduler.{name}"),
            metrics=self._metrics,
            overhead_mb=config.placement.guest_overhead_mb,
        )
        self._work = RpcServer(
            self._broker,
            queue=topology.scheduler_queue(delivery_limit=config.messaging.delivery_limit),
            methods=requests.methods(),
            max_message_bytes=config.messaging.max_message_bytes,
            concurrency=config.scheduler.max_concurrent,
            handler_timeout=_HANDLER_SECONDS,
            stop_timeout=config.scheduler.stop_timeout,
            paused=True,
            on_outcome=self._on_outcome,
            on_rejected=requests.tell_rejected,
        )
        self._gate = WorkGate(self._work, is_open=lambda: self._watch.is_up)
        self._http = HttpEndpoints(
            config.http,
            health=self._health,
            metrics=self._metrics,
            page=StatusPage(f"Scheduler {name}", health=self._health, tables=self._tables),
            is_alive=self._is_alive,
            on_listening=lambda: manager.notify(READY=1, STATUS=self._health.summary),
        )
        self._metrics.observe_health(self._health)

    def start(self) -> None:
        """Start every part; they are stopped in the reverse order: the queue first, the connections last."""
        parts = {
            _BROKER_TASK: self._broker.run(),
            "http": self._http.run(),
            "rpc-work": self._work.run(),
            "work-gate": self._gate.run(),
            "placement-watch": self._watch.run(),
            "watchdog": feed_watchdog(self._manager, self._is_alive),
        }
        for name, work in parts.items():
            self._supervisor.start(name, work)

    def _tables(self) -> Iterator[Table]:
        yield counted("Decisions", self._metrics.decisions)
        yield counted("Claims", self._metrics.claims)

    def _on_broker(self, is_up: bool) -> None:  # noqa: FBT001 - the callback's one argument
        self._health.note(Dependency.BROKER, None if is_up else self._broker.fault or "connection lost")

    def _on_health(self) -> None:
        self._gate.look()
        if self._health.is_ready and not self._was_ready:
            log.info("scheduler.ready", name=self._config.scheduler.name)
        self._was_ready = self._health.is_ready
        if not self._supervisor.is_stopping:
            self._manager.notify(STATUS=self._health.summary)

    def _on_outcome(self, method: str, outcome: Outcome) -> None:
        self._metrics.requests.labels(method, outcome.value).inc()

    def _is_alive(self) -> bool:
        """Whether the broker's task goes on; to be asked at all shows that the loop does."""
        return self._supervisor.is_running(_BROKER_TASK)
