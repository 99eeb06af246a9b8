"""The host daemon: its parts made and connected, in one place."""

import asyncio
import os
import socket
from contextlib import AsyncExitStack
from typing import Any
from uuid import UUID

import aiohttp
import structlog

from sev_agent import __version__, crash_points
from sev_agent.compute import gauges
from sev_agent.compute.accounting import Accounting
from sev_agent.compute.admission import Admission
from sev_agent.compute.announcements import Announcements
from sev_agent.compute.build import Builder, bases_in_use
from sev_agent.compute.guest_events import GuestEvents
from sev_agent.compute.host_boot import HostBoot
from sev_agent.compute.host_watch import HostWatch, ReadinessReport
from sev_agent.compute.image_cache import ImageCache
from sev_agent.compute.instance_locks import InstanceLocks
from sev_agent.compute.instances import Instances
from sev_agent.compute.methods import query_methods, work_methods
from sev_agent.compute.nova_tree import NovaTree
from sev_agent.compute.operations import Operations
from sev_agent.compute.outbox import Outbox
from sev_agent.compute.overview import Overview
from sev_agent.compute.own_tree import OwnTree
from sev_agent.compute.power import Power
from sev_agent.compute.provider_upkeep import Providers
from sev_agent.compute.queues import STOP_SECONDS, Queues
from sev_agent.compute.reconciler import Reconciler
from sev_agent.compute.record_store import RecordStore
from sev_agent.compute.refused_requests import RefusedRequests
from sev_agent.compute.rescheduling import Rescheduling
from sev_agent.compute.right_to_count import RightToCount
from sev_agent.compute.state_lock import StateLock
from sev_agent.compute.status import HostStatus
from sev_agent.config import AgentConfig
from sev_agent.hypervisor.connection import Hypervisor
from sev_agent.hypervisor.domains import Domains
from sev_agent.messaging.broker import Broker
from sev_agent.messaging.client import RpcClient
from sev_agent.messaging.host_lock import HostLock
from sev_agent.messaging.notifications import Notifier
from sev_agent.messaging.spool import Spool
from sev_agent.observe.health import OF_A_HOST, Dependency, Health
from sev_agent.observe.http import HttpEndpoints
from sev_agent.observe.lookout import Lookout, Question
from sev_agent.observe.metrics import Metrics
from sev_agent.observe.page import StatusPage
from sev_agent.openstack.glance import Glance
from sev_agent.openstack.identity import KeystoneIdentity, identify
from sev_agent.openstack.placement import Placement
from sev_agent.service import ServiceManager, Supervisor, feed_watchdog

log = structlog.stdlib.get_logger(__name__)

_SECOND_LOOK_SECONDS = 5.0
_AGAIN_SECONDS = 3.0
_BROKER_TASK = "broker"
_SERVER_ERROR = 500
_MAX_DRIFT_TOLD = 100
"""Differences in one notification; the log has all."""


async def run_agent(config: AgentConfig) -> None:
    """Run the daemon until SIGTERM or SIGINT. Raises what made it stop otherwise."""
    manager = ServiceManager(os.environ)
    supervisor = Supervisor(
        stop_timeout=config.builds.stop_timeout + STOP_SECONDS,
        # systemd then waits as long as a stop may take, also where it did not ask for one.
        on_stop=lambda: manager.notify(STOPPING=1, STATUS="stopping"),
    )
    supervisor.stop_on_signals()
    log.info("agent.starting", version=__version__, host=config.host.name)
    if (armed := crash_points.armed()) is not None:
        log.warning("agent.crash_point.armed", point=armed)
    async with AsyncExitStack() as closing:
        session = await closing.enter_async_context(aiohttp.ClientSession())
        agent = _Agent(config, session, manager, supervisor)
        await agent.prepare()
        agent.start()
        await supervisor.wait()


class _Agent:
    """Everything of one daemon. Arrows between parts that were made earlier and later go through lambdas here."""

    def __init__(
        self, config: AgentConfig, session: aiohttp.ClientSession, manager: ServiceManager, supervisor: Supervisor
    ) -> None:
        self._config = config
        self._manager = manager
        self._supervisor = supervisor
        host = config.host.name
        self._metrics = Metrics()
        self._health = Health(_leans_on(config), on_change=self._on_health)
        self._was_ready = False
        self._state_lock = StateLock(config.host.state_dir, host)
        self._store = RecordStore(config.host.state_dir / "instances")

        self._hypervisor = Hypervisor(
            config.hypervisor,
            on_event=lambda event: self._guest_events.on_event(event),  # noqa: PLW0108 - made later than this
            on_change=self._on_hypervisor,
        )
        self._domains = Domains(self._hypervisor)

        on_request = self._on_request
        identity = identify(config.auth, session, on_request=on_request)
        glance = Glance(session, identity, config.glance, on_request=on_request)
        questions: dict[Dependency, Question] = {Dependency.GLANCE: glance.check}
        if isinstance(identity, KeystoneIdentity):
            questions[Dependency.KEYSTONE] = identity.check
        self._lookout = Lookout(questions, self._health, interval=config.health.interval)
        placement = Placement(session, identity, config.placement, on_request=on_request)

        self._right_to_count = RightToCount()
        self._broker = Broker(
            config.messaging.url.get_secret_value(),
            connection_name=f"sev-agent {host}, process {os.getpid()} on {socket.gethostname()}",
            connect_timeout=config.messaging.connect_timeout,
            reconnect_max=config.messaging.reconnect_max,
            publish_timeout=config.messaging.publish_timeout,
            claim=HostLock(host).take,
            on_change=self._on_broker,
        )
        self._outbox = Outbox(
            Notifier(self._broker, publisher_id=f"sev_agent.{host}"),
            Spool(config.host.state_dir / "notifications"),
            self._store,
            config.notifications,
            on_dropped=lambda letter: self._metrics.notifications_dropped.labels(letter.event_type).inc(),
        )
        self._announcements = Announcements(self._outbox, self._store, host)

        self._cache = ImageCache(
            config.host.state_dir / "images", glance, config.images, in_use=bases_in_use(self._store)
        )
        self._accounting = Accounting(
            placement=placement,
            providers=_providers(config, placement),
            domains=self._domains,
            store=self._store,
            settings=config.placement,
            in_flight=lambda uuid: self._instances.in_flight(uuid) or self._guest_events.holds(uuid),
            on_seen=self._on_seen,
            may_write=self._right_to_count.wait,
        )
        admission = Admission(overhead_mb=config.placement.guest_overhead_mb)
        builder = Builder(
            store=self._store,
            glance=glance,
            cache=self._cache,
            accounting=self._accounting,
            domains=self._domains,
            admission=admission,
            config=config,
        )
        power = Power(
            domains=self._domains,
            accounting=self._accounting,
            admission=admission,
            redefine=builder.redefine,
            shutdown_timeout=config.builds.guest_shutdown_timeout,
        )
        locks = InstanceLocks()
        rescheduling = Rescheduling(RpcClient(self._broker, max_message_bytes=config.messaging.max_message_bytes), host)
        operations = Operations(
            store=self._store,
            locks=locks,
            builder=builder,
            power=power,
            rescheduling=rescheduling,
            announcements=self._announcements,
            metrics=self._metrics,
            settings=config.builds,
            on_postponed=lambda: self._reconciler.soon(after=_AGAIN_SECONDS),
        )
        self._instances = Instances(
            host=host,
            store=self._store,
            locks=locks,
            operations=operations,
            rescheduling=rescheduling,
            power=power,
            accounting=self._accounting,
            announcements=self._announcements,
            metrics=self._metrics,
            stop_timeout=config.builds.stop_timeout,
        )
        self._guest_events = GuestEvents(
            mark=self._accounting.mark, on_stopped=power.on_stopped, in_flight=self._instances.in_flight
        )
        self._host_boot = HostBoot(
            platform_root=config.encryption.platform_root,
            state_dir=config.host.state_dir,
            store=self._store,
            start=self._instances.start_again,
        )
        readiness = ReadinessReport(
            self._domains, self._store, tell=lambda payload: self._announcements.host("generations", payload)
        )
        self._status = HostStatus(
            config,
            hypervisor=self._hypervisor,
            domains=self._domains,
            health=self._health,
            admission=admission,
            readiness=readiness,
        )
        self._watch = HostWatch(
            config.encryption.platform_root,
            known=lambda: self._status.acted_on,
            interval=config.encryption.watch_interval,
            on_change=lambda: self._reconciler.soon(),  # noqa: PLW0108 - made later than this
        )
        self._reconciler = Reconciler(
            accounting=self._accounting,
            resources=self._status.resources,
            store=self._store,
            resume=self._resume,
            health=self._health,
            metrics=self._metrics,
            settings=config.reconciler,
            on_drift=self._on_drift,
        )
        self._queues = Queues(
            self._broker,
            config.messaging,
            host,
            work=work_methods(self._instances),
            queries=query_methods(self._instances, self._store, self._status.report, self._reconciler),
            can_work=lambda: self._hypervisor.is_up and self._accounting.is_registered,
            refused=RefusedRequests(self._announcements, self._metrics),
            health=self._health,
            metrics=self._metrics,
        )
        overview = Overview(
            host,
            status=self._status,
            readiness=readiness,
            accounting=self._accounting,
            store=self._store,
            operations=operations,
            reconciler=self._reconciler,
            outbox=self._outbox,
            hypervisor=self._hypervisor,
            metrics=self._metrics,
        )
        self._http = HttpEndpoints(
            config.http,
            health=self._health,
            metrics=self._metrics,
            page=StatusPage(f"Host {host}", health=self._health, tables=overview.tables),
            is_alive=self._is_alive,
            on_listening=self._on_listening,
        )
        gauges.observe(
            self._metrics,
            health=self._health,
            status=self._status,
            readiness=readiness,
            accounting=self._accounting,
            instances=self._instances,
            outbox=self._outbox,
            hypervisor=self._hypervisor,
        )

    async def prepare(self) -> None:
        """Open what is on disk.

        Raises ``OSError`` where the state directory cannot be used, ``HostTaken`` where another daemon uses it.
        """
        await asyncio.to_thread(self._state_lock.take)
        await asyncio.to_thread(self._store.open)
        await asyncio.to_thread(self._outbox.open)
        await asyncio.to_thread(self._host_boot.prepare)
        await self._cache.prepare()

    def start(self) -> None:
        """Start every part; they are stopped in the reverse order: the queues first, the connections last."""
        parts = {
            "hypervisor": self._hypervisor.run(),
            _BROKER_TASK: self._broker.run(),
            "outbox": self._outbox.run(),
            "http": self._http.run(),
            "accounting": self._accounting.run(),
            "instances": self._instances.run(),
            "host-boot": self._host_boot.run(),
            "reconciler": self._reconciler.run(),
            "host-watch": self._watch.run(),
            "lookout": self._lookout.run(),
            **self._queues.parts(),
            "watchdog": feed_watchdog(self._manager, self._is_alive),
        }
        for name, work in parts.items():
            self._supervisor.start(name, work)

    def _on_hypervisor(self, is_up: bool) -> None:  # noqa: FBT001 - the callback's one argument
        if is_up:
            self._health.up(Dependency.LIBVIRT)
            # What happened while nobody listened is found by looking at the whole; then what is unfinished is taken up.
            self._reconciler.soon()
            # A libvirtd that has just begun still calls a guest running that ended while it was away; it finds out
            # within seconds, and tells nobody.
            self._reconciler.soon(after=_SECOND_LOOK_SECONDS)
        else:
            self._health.down(Dependency.LIBVIRT, self._hypervisor.reason or "not connected")

    async def _on_seen(self, uuid: UUID, runs: bool) -> None:  # noqa: FBT001 - the callback's own
        # Where the whole host goes down, others end the guests, and the records must say which of them ran till then.
        if not self._supervisor.is_stopping:
            await self._instances.observe(uuid, runs=runs)

    def _resume(self) -> None:
        """Take up what waited, now that libvirt and Placement are there and agree."""
        self._status.look()
        self._instances.resume()
        self._host_boot.on_registered()

    def _on_broker(self, is_up: bool) -> None:  # noqa: FBT001 - the callback's one argument
        self._right_to_count.look(is_up=is_up, fault=self._broker.fault)
        self._health.note(Dependency.BROKER, None if is_up else self._broker.fault or "connection lost")

    def _on_health(self) -> None:
        self._queues.look()
        if self._health.is_ready and not self._was_ready:
            log.info("agent.ready", host=self._config.host.name)
        self._was_ready = self._health.is_ready
        if not self._supervisor.is_stopping:
            self._manager.notify(STATUS=self._health.summary)

    def _on_listening(self) -> None:
        """The daemon's own parts run. What it leans on may be away: a start must not wait for it, or fail by it."""
        self._manager.notify(READY=1, STATUS=self._health.summary)

    def _on_drift(self, findings: list[dict[str, Any]]) -> None:
        self._announcements.host("drift", {"count": len(findings), "differences": findings[:_MAX_DRIFT_TOLD]})

    def _on_request(self, service: str, method: str, status: int, seconds: float) -> None:
        self._metrics.count_request(service, method, status, seconds)
        if status == 0 or status >= _SERVER_ERROR:
            self._lookout.doubt(Dependency(service))

    def _is_alive(self) -> bool:
        """Whether libvirt's thread turns and the broker's task goes on; to be asked at all shows that the loop does."""
        return self._hypervisor.thread_alive and self._supervisor.is_running(_BROKER_TASK)


def _leans_on(config: AgentConfig) -> list[Dependency]:
    return [each for each in OF_A_HOST if each is not Dependency.KEYSTONE or config.auth.type != "none"]


def _providers(config: AgentConfig, placement: Placement) -> Providers:
    match config.placement.mode:
        case "standalone":
            return OwnTree(placement, config.host.name)
        case "beside-nova":
            return NovaTree(placement, config.placement.nova_node)
