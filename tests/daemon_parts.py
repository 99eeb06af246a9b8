"""A host daemon without broker and builds: its journal, its accounting and its changes of power, in this process."""

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import cast
from uuid import UUID

from sev_agent.compute.accounting import Accounting
from sev_agent.compute.admission import Admission
from sev_agent.compute.announcements import Announcements
from sev_agent.compute.build import Builder
from sev_agent.compute.guest_events import GuestEvents
from sev_agent.compute.host_boot import HostBoot
from sev_agent.compute.image_cache import ImageCache
from sev_agent.compute.instance_locks import InstanceLocks
from sev_agent.compute.instances import Instances
from sev_agent.compute.operations import Operations
from sev_agent.compute.outbox import Outbox
from sev_agent.compute.own_tree import OwnTree
from sev_agent.compute.power import Power
from sev_agent.compute.record import Record, State
from sev_agent.compute.rescheduling import Rescheduling
from sev_agent.config import AgentConfig, BuildsSection, NotificationsSection, PlacementSection
from sev_agent.hypervisor.events import LifecycleEvent
from sev_agent.messaging import envelope
from sev_agent.messaging.client import RpcClient
from sev_agent.messaging.envelope import Priority
from sev_agent.messaging.notifications import Notifier
from sev_agent.messaging.spool import Spool
from sev_agent.observe.metrics import Metrics
from sev_agent.openstack.glance import Glance
from sev_agent.openstack.placement import Placement
from tests.journal import opened
from tests.libvirt_host import Host

_PATIENCE = 60.0


class Ear:
    """Takes what would go to the broker."""

    can_send = True

    def __init__(self) -> None:
        self.heard: list[str] = []

    async def publish(self, body: bytes, priority: Priority) -> None:
        notification = envelope.decode_notification(envelope.unpack(body, max_bytes=len(body)))
        assert notification.priority is priority
        self.heard.append(notification.event_type.removeprefix("sev.instance."))


class Daemon:
    """The parts of one daemon that bring a guest from a request to its allocation, at work from the start.

    ``directory`` is its own, with the host's platform in it; ``hold`` is how many seconds a guest that ended itself is
    left alone.
    """

    def __init__(
        self,
        directory: Path,
        name: str,
        libvirt: Host,
        placement: Placement,
        settings: PlacementSection,
        *,
        shutdown_timeout: float = 10,
        hold: float = 0.5,
        on_event: Callable[[LifecycleEvent], None] = lambda _: None,
    ) -> None:
        self._on_event = on_event
        self.store = opened(directory / "instances")
        domains = libvirt.domains
        self.ear = Ear()
        spool = Spool(directory / "notifications")
        outbox = Outbox(cast("Notifier", self.ear), spool, self.store, NotificationsSection())
        outbox.open()
        self.accounting = Accounting(
            placement=placement,
            providers=OwnTree(placement, name),
            domains=domains,
            store=self.store,
            settings=settings,
            in_flight=lambda uuid: self.instances.in_flight(uuid) or self.events.holds(uuid),
            on_seen=lambda uuid, runs: self.instances.observe(uuid, runs=runs),
            may_write=_at_once,
        )
        builder = Builder(
            store=self.store,
            glance=cast("Glance", None),
            cache=cast("ImageCache", None),
            accounting=self.accounting,
            domains=domains,
            admission=Admission(overhead_mb=128),
            config=AgentConfig(),
        )
        self.power = Power(
            domains=domains,
            accounting=self.accounting,
            admission=Admission(overhead_mb=128),
            redefine=builder.redefine,
            shutdown_timeout=shutdown_timeout,
        )
        locks, metrics = InstanceLocks(), Metrics()
        announcements = Announcements(outbox, self.store, name)
        rescheduling = Rescheduling(cast("RpcClient", None), name)
        operations = Operations(
            store=self.store,
            locks=locks,
            builder=builder,
            power=self.power,
            rescheduling=rescheduling,
            announcements=announcements,
            metrics=metrics,
            settings=BuildsSection(),
            on_postponed=lambda: None,
        )
        self.instances = Instances(
            host=name,
            store=self.store,
            locks=locks,
            operations=operations,
            rescheduling=rescheduling,
            power=self.power,
            accounting=self.accounting,
            announcements=announcements,
            metrics=metrics,
            stop_timeout=0.01,
        )
        self.events = GuestEvents(
            mark=self.accounting.mark, on_stopped=self.power.on_stopped, in_flight=self.instances.in_flight, hold=hold
        )
        self.host_boot = HostBoot(
            platform_root=directory / "platform",
            state_dir=directory,
            store=self.store,
            start=self.instances.start_again,
        )
        self.host_boot.prepare()
        parts = (outbox, self.accounting, self.instances, self.host_boot)
        self.tasks = [asyncio.create_task(part.run()) for part in parts]
        self.tasks.append(asyncio.create_task(self._pump(libvirt)))

    async def _pump(self, libvirt: Host) -> None:
        while True:
            event = await libvirt.events.get()
            self._on_event(event)
            self.events.on_event(event)

    async def end(self) -> None:
        for task in reversed(self.tasks):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    def state(self, uuid: UUID) -> State:
        known = self.store.get(uuid)
        assert known is not None
        return known.state

    async def settled(self, uuid: UUID) -> Record:
        """The record once no operation works on it any more."""
        async with asyncio.timeout(_PATIENCE):
            while uuid in self.instances._tasks:
                await asyncio.wait({self.instances._tasks[uuid]})
                await asyncio.sleep(0)
        known = self.store.get(uuid)
        assert known is not None
        return known


async def _at_once() -> None:
    """The right to count of a host whose name nobody else has."""
