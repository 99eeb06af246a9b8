"""The receiving end of RPC: requests from one queue, each answered in a task of its own."""

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from typing import Any

import structlog
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage, AbstractQueue

from sev_agent import schema
from sev_agent.backoff import Backoff
from sev_agent.errors import SevAgentError
from sev_agent.messaging import topology
from sev_agent.messaging.answering import Answering, Method, OnOutcome, OnRejected
from sev_agent.messaging.broker import Broker, BrokerUnavailable, Link, broker_errors
from sev_agent.uninterrupted import raise_if_cancelled

log = structlog.stdlib.get_logger(__name__)

_RETRY_FIRST = 0.2
_RETRY_MAX = 5.0


class RpcServer:
    """Serves ``methods`` from ``queue``, at most ``concurrency`` requests at a time.

    A cast that is refused goes to ``sev_agent.dead`` with the reason in its headers, a call gets the reason as its
    reply; ``on_rejected`` is told of both. A fault of ours fails a call, and lets a cast come again until the queue's
    delivery limit. ``paused`` says whether to start without a consumer. ``on_change`` is told True once the broker has
    the queue and its consumer, and False when not any more, and for every ``fault``. Times are seconds.
    """

    def __init__(
        self,
        broker: Broker,
        *,
        queue: topology.QueueSpec,
        methods: Iterable[Method[Any]],
        max_message_bytes: int,
        concurrency: int,
        handler_timeout: float,
        stop_timeout: float,
        version: str = schema.VERSION,
        namespace: str | None = None,
        paused: bool = False,
        on_change: Callable[[bool], None] | None = None,
        on_outcome: OnOutcome | None = None,
        on_rejected: OnRejected | None = None,
    ) -> None:
        self._broker = broker
        self._queue = queue
        self._concurrency = concurrency
        self._stop_timeout = stop_timeout
        self._on_change = on_change
        self._answering = Answering(
            broker,
            queue=queue.name,
            methods=methods,
            max_message_bytes=max_message_bytes,
            handler_timeout=handler_timeout,
            version=version,
            namespace=namespace,
            on_outcome=on_outcome,
            on_rejected=on_rejected,
        )
        self._wanted = asyncio.Event()
        if not paused:
            self._wanted.set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._interrupt = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._fault: SevAgentError | None = None

    @property
    def fault(self) -> SevAgentError | None:
        """Why the queue cannot be consumed just now, where that is known."""
        return self._fault

    async def resume(self) -> None:
        """Consume from now on, as soon as the broker is there."""
        self._wanted.set()

    async def pause(self) -> None:
        """Take no more requests; those in hand are finished.

        Returns, within a bound, when the consumer is cancelled. A quorum queue still counts it until the last request
        in hand is acked.
        """
        self._wanted.clear()
        self._interrupt.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._broker.timeout):
                await self._idle.wait()

    async def run(self) -> None:
        """Consume on every link until cancelled; then finish what is in hand, within ``stop_timeout``."""
        backoff = Backoff(_RETRY_FIRST, _RETRY_MAX)
        try:
            while True:
                raise_if_cancelled()
                await self._wanted.wait()
                link = await self._broker.link()
                try:
                    await self._serve(link)
                    self._fault = None
                    backoff.reset()
                except SevAgentError as error:
                    self._fault = error
                    self._tell(is_consumed=False)
                    log.warning("rpc.consume.failed", queue=self._queue.name, error=str(error))
                    await backoff.pause()
        finally:
            await self._abandon()

    async def _serve(self, link: Link) -> None:
        """Consume until the channel is gone, the broker cancels the consumer, or ``pause`` asks for it."""
        self._interrupt = interrupt = asyncio.Event()
        self._idle.clear()
        try:
            if not self._wanted.is_set():
                return
            channel = await link.channel(prefetch=self._concurrency)
            channel.close_callbacks.add(lambda *_: interrupt.set())
            try:
                with broker_errors(f"consume '{self._queue.name}'"):
                    underlay = await channel.get_underlay_channel()
                    # A queue that is deleted, or whose leader moves, ends the consumer and not the channel.
                    underlay.on_consumer_cancel_callbacks.add(lambda _: interrupt.set())
                    queue = await self._queue.declare(channel, timeout=self._broker.timeout)
                    tag = await queue.consume(self._accept, timeout=self._broker.timeout)
                await self._consume(queue, tag, interrupt)
            finally:
                await self._finish(channel)
        finally:
            self._idle.set()

    async def _consume(self, queue: AbstractQueue, tag: str, interrupt: asyncio.Event) -> None:
        self._fault = None
        self._tell(is_consumed=True)
        log.info("rpc.consuming", queue=self._queue.name)
        try:
            raise_if_cancelled()
            await interrupt.wait()
        finally:
            self._tell(is_consumed=False)
            with contextlib.suppress(BrokerUnavailable), broker_errors("cancel the consumer"):
                await queue.cancel(tag, timeout=self._broker.timeout)
            self._idle.set()
            log.info("rpc.stopped", queue=self._queue.name, in_hand=len(self._tasks))

    def _tell(self, *, is_consumed: bool) -> None:
        if self._on_change is not None:
            self._on_change(is_consumed)

    async def _finish(self, channel: AbstractChannel) -> None:
        """Let the requests in hand be acked while their channel lives, then close it."""
        if self._tasks and not channel.is_closed:
            await asyncio.wait(self._tasks, timeout=self._stop_timeout)
        with contextlib.suppress(BrokerUnavailable), broker_errors("close the channel"):
            async with asyncio.timeout(self._broker.timeout):
                await channel.close()

    async def _abandon(self) -> None:
        for task in self._tasks:
            log.error("rpc.abandoned", queue=self._queue.name, task=task.get_name())
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=self._stop_timeout)

    async def _accept(self, incoming: AbstractIncomingMessage) -> None:
        # This callback is cancelled when the channel goes; the request must not be.
        task = asyncio.create_task(
            self._answering.answer(incoming), name=f"rpc:{self._queue.name}:{incoming.delivery_tag}"
        )
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
