"""Schedulers and one host as the API sees them: they take real requests, and tell what the test wants."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from pydantic import JsonValue

from sev_agent import schema
from sev_agent.errors import NotFound
from sev_agent.messaging import topology
from sev_agent.messaging.answering import Method
from sev_agent.messaging.broker import Broker
from sev_agent.messaging.envelope import Priority, RequestContext
from sev_agent.messaging.notifications import Notifier
from sev_agent.messaging.server import RpcServer

PATIENCE = 60.0
"""Seconds for what takes a moment on an idle machine."""


@dataclass(frozen=True)
class Order:
    """A request that a host took."""

    method: str
    uuid: str
    context: RequestContext
    arguments: Mapping[str, Any]


class InstanceNotFound(NotFound):
    code = "instance.not_found"


class Fleet:
    """``scheduled`` and ``orders`` are the requests taken; ``views`` is what the host answers when it is asked."""

    def __init__(self, broker: Broker, host: str) -> None:
        self.host = host
        self.scheduled: asyncio.Queue[tuple[RequestContext, schema.ScheduleArguments]] = asyncio.Queue()
        self.orders: asyncio.Queue[Order] = asyncio.Queue()
        self.views: dict[str, dict[str, Any]] = {}
        self._by_scheduler = Notifier(broker, publisher_id="sev_scheduler.test")
        self._by_host = Notifier(broker, publisher_id=f"sev_agent.{host}")
        self._broker = broker
        self._taking: set[str] = set()
        self.scheduler = self._server(topology.scheduler_queue(delivery_limit=5), [self._schedule()])
        self.work = self._server(topology.work_queue(host, delivery_limit=5), self._work())
        self.servers = (self.scheduler, self.work, self._server(topology.query_queue(host), self._queries()))

    @property
    def takes_requests(self) -> bool:
        return len(self._taking) == len(self.servers)

    async def next_scheduled(self) -> schema.ScheduleArguments:
        async with asyncio.timeout(PATIENCE):
            return (await self.scheduled.get())[1]

    async def next_order(self) -> Order:
        async with asyncio.timeout(PATIENCE):
            return await self.orders.get()

    async def scheduled_to(self, uuid: str, host: str | None = None, tried: tuple[dict[str, Any], ...] = ()) -> None:
        """``sev.instance.schedule.end``."""
        payload = {"instance_uuid": uuid, "host": host or self.host, "tried": list(tried)}
        await self._by_scheduler.notify("sev.instance.schedule.end", payload)

    async def no_host(self, uuid: str, message: str, tried: tuple[dict[str, Any], ...] = ()) -> None:
        """``sev.instance.schedule.error``."""
        fault = {"code": "scheduler.no_valid_host", "message": message, "field": None, "remedy": "add hosts"}
        payload = {"instance_uuid": uuid, "tried": list(tried), "fault": fault, "counts": {"known": 0}}
        await self._by_scheduler.notify("sev.instance.schedule.error", payload, priority=Priority.ERROR)

    async def tells(
        self, uuid: str, event: str, state: str, *, at: datetime | None = None, host: str | None = None, **more: Any
    ) -> None:
        """``sev.instance.<event>`` of the host."""
        moment = (at or datetime.now(UTC)).isoformat()
        payload = {
            "host": host or self.host,
            "instance_uuid": uuid,
            "state": state,
            "updated_at": moment,
            "fault": None,
        }
        await self._by_host.notify(f"sev.instance.{event}", {**payload, **more})

    async def builds(self, uuid: str) -> None:
        """What a scheduler and the host tell of a build that ends well."""
        await self.scheduled_to(uuid)
        await self.tells(uuid, "create.start", "building")
        await self.tells(uuid, "create.progress", "building", step="claim")
        await self.tells(uuid, "create.end", "active")

    async def play(self) -> None:
        """Carry out whatever is asked for, well, until cancelled."""
        states = {"start_instance": "active", "stop_instance": "stopped", "reboot_instance": "active"}

        async def build() -> None:
            while True:
                _, asked = await self.scheduled.get()
                uuid = str(asked.instance.uuid)
                self.views[uuid] = {"console": f"console of {asked.instance.name}\n"}
                await self.builds(uuid)

        async def obey() -> None:
            while True:
                order = await self.orders.get()
                action = order.method.removesuffix("_instance").replace("terminate", "delete")
                await self.tells(order.uuid, f"{action}.end", states.get(order.method, "deleted"))

        async with asyncio.TaskGroup() as group:
            group.create_task(build())
            group.create_task(obey())

    def _schedule(self) -> Method[Any]:
        async def schedule(context: RequestContext, arguments: schema.ScheduleArguments) -> JsonValue:
            await self.scheduled.put((context, arguments))
            return None

        return Method(name="schedule_instance", arguments=schema.ScheduleArguments, handler=schedule)

    def _work(self) -> list[Method[Any]]:
        def method(name: str, arguments: type[Any]) -> Method[Any]:
            async def take(context: RequestContext, given: Any) -> JsonValue:
                asked = given.model_dump(mode="json")
                await self.orders.put(Order(name, asked["instance_uuid"], context, asked))
                return None

            return Method(name=name, arguments=arguments, handler=take)

        plain = ("terminate_instance", "start_instance", "stop_instance")
        return [
            *(method(name, schema.InstanceArguments) for name in plain),
            method("reboot_instance", schema.RebootArguments),
        ]

    def _queries(self) -> list[Method[Any]]:
        def known(uuid: UUID) -> dict[str, Any]:
            if str(uuid) not in self.views:
                raise InstanceNotFound(f"host {self.host} has no instance {uuid}")
            return self.views[str(uuid)]

        async def get(_: RequestContext, arguments: schema.InstanceArguments) -> JsonValue:
            return known(arguments.instance_uuid)

        async def console(_: RequestContext, arguments: schema.ConsoleArguments) -> JsonValue:
            text = str(known(arguments.instance_uuid)["console"])
            return text if arguments.length is None else "".join(text.splitlines(keepends=True)[-arguments.length :])

        return [
            Method(name="get_instance", arguments=schema.InstanceArguments, handler=get),
            Method(name="get_console_output", arguments=schema.ConsoleArguments, handler=console),
        ]

    def _server(self, queue: topology.QueueSpec, methods: list[Method[Any]]) -> RpcServer:
        return RpcServer(
            self._broker,
            queue=queue,
            methods=methods,
            max_message_bytes=1024 * 1024,
            concurrency=32,
            handler_timeout=10,
            stop_timeout=5,
            on_change=lambda is_up: self._taking.add(queue.name) if is_up else self._taking.discard(queue.name),
        )
