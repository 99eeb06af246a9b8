"""The asking end of RPC: calls with their replies, casts, and the question who listens."""

import asyncio
import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any
from uuid import uuid4

import structlog
from aio_pika.abc import AbstractIncomingMessage
from aio_pika.exceptions import ChannelNotFoundEntity
from pydantic import JsonValue

from sev_agent import schema
from sev_agent.backoff import Backoff
from sev_agent.errors import SevAgentError, Unavailable
from sev_agent.messaging import envelope, topology
from sev_agent.messaging.broker import Broker, BrokerUnavailable, Delivery, Link, Unroutable, broker_errors
from sev_agent.messaging.envelope import Failure, Reply, ReplyAddress, Request, RequestContext
from sev_agent.messaging.wire_json import MalformedMessage
from sev_agent.uninterrupted import raise_if_cancelled

log = structlog.stdlib.get_logger(__name__)

_RETRY_FIRST = 0.2
_RETRY_MAX = 5.0
_DIAGNOSIS_TIMEOUT = 2.0


class MessagingTimeout(Unavailable):
    """No reply came in time; what was asked may have been done or not."""

    code = "message.timeout"


class RemoteError(SevAgentError):
    """The other side refused or failed. ``code``, ``field``, ``remedy`` and ``retryable`` are what it said.

    ``kind`` is the class of the error there. An error that is none of this project's has the code ``remote``.
    """

    code = "remote"

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message, field=failure.field, remedy=failure.remedy)
        self.kind = failure.kind
        # Elsewhere these belong to the class; here alone each error brings its own, and an instance's value wins.
        vars(self).update(code=failure.code or type(self).code, retryable=failure.retryable)


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueUse:
    """Who takes from a queue, and how many messages wait in it that nobody has taken."""

    consumers: int
    waiting: int


class RpcClient:
    """Calls and casts through ``broker``. Its ``run`` keeps the reply queue, so calls need it, casts do not.

    Replies over ``max_message_bytes`` are refused.
    """

    def __init__(self, broker: Broker, *, max_message_bytes: int, version: str = schema.VERSION) -> None:
        self._broker = broker
        self._max_message_bytes = max_message_bytes
        self._version = version
        self._reply_queue = ""
        self._ready = asyncio.Event()
        self._fault: BrokerUnavailable | None = None
        self._waiting: dict[str, asyncio.Future[Reply]] = {}

    async def run(self) -> None:
        """Keep a reply queue on every link until cancelled."""
        backoff = Backoff(_RETRY_FIRST, _RETRY_MAX)
        while True:
            raise_if_cancelled()
            link = await self._broker.link()
            try:
                await self._receive(link)
                backoff.reset()
            except BrokerUnavailable as error:
                self._fault = error
                log.warning("rpc.replies.failed", error=str(error))
                await backoff.pause()

    async def call(
        self,
        method: str,
        arguments: Mapping[str, Any],
        *,
        queue: str,
        timeout: float,
        context: RequestContext | None = None,
    ) -> JsonValue:
        """Ask, and return the result.

        Raises ``RemoteError`` with what the other side said, ``Unroutable`` when there is no such queue,
        ``MessagingTimeout`` after ``timeout`` seconds, ``BrokerUnavailable``.
        """
        msg_id = uuid4().hex
        reply: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(timeout) as limit:
                # It may be gone again before this task goes on.
                while not self._ready.is_set():
                    await self._ready.wait()
                self._waiting[msg_id] = reply
                request = self._request(
                    method, arguments, context, ReplyAddress(queue=self._reply_queue, msg_id=msg_id)
                )
                await self._send(request, queue, expiration=timeout)
                answer = await reply
        except TimeoutError:
            if not limit.expired():
                raise
            raise await self._timed_out(method, queue, timeout) from None
        finally:
            self._waiting.pop(msg_id, None)
            # A loss may end both the sending and the waiting; asyncio tells on the terminal of what nobody looked at.
            if reply.done() and not reply.cancelled():
                reply.exception()
        if answer.failure is not None:
            raise RemoteError(answer.failure)
        return answer.result

    async def cast(
        self,
        method: str,
        arguments: Mapping[str, Any],
        *,
        queue: str,
        context: RequestContext | None = None,
        version: str | None = None,
    ) -> None:
        """Hand the request to the broker; return once it keeps it. Raises ``Unroutable``, ``BrokerUnavailable``.

        ``version`` is an older one than this client's, where ``arguments`` need no newer one.
        """
        request = self._request(method, arguments, context, None)
        await self._send(replace(request, version=version or self._version), queue, expiration=None)

    async def consumer_count(self, queue: str) -> int | None:
        """How many consume ``queue`` now; ``None`` where there is no such queue.

        A host that can work consumes its work queue, so 1 is alive. Raises ``BrokerUnavailable``.
        """
        use = await self.queue_use(queue)
        return None if use is None else use.consumers

    async def queue_use(self, queue: str) -> QueueUse | None:
        """How ``queue`` is used now, by a passive declare; ``None`` where it is not. Raises ``BrokerUnavailable``."""
        link = await self._broker.wait_up(self._broker.timeout)
        channel = await link.channel()
        try:
            with broker_errors(f"ask for the consumers of '{queue}'"):
                try:
                    declared = await channel.declare_queue(queue, passive=True, timeout=self._broker.timeout)
                except ChannelNotFoundEntity:
                    return None
                found = declared.declaration_result
                return QueueUse(consumers=found.consumer_count or 0, waiting=found.message_count or 0)
        finally:
            with contextlib.suppress(BrokerUnavailable), broker_errors("close the channel"):
                await channel.close()

    def _request(
        self,
        method: str,
        arguments: Mapping[str, Any],
        context: RequestContext | None,
        reply_to: ReplyAddress | None,
    ) -> Request:
        return Request(
            method=method,
            arguments=dict(arguments),
            context=context or RequestContext(),
            version=self._version,
            reply_to=reply_to,
        )

    async def _send(self, request: Request, queue: str, *, expiration: float | None) -> None:
        delivery = Delivery(exchange=topology.EXCHANGE, routing_key=queue, expiration=expiration)
        try:
            await self._broker.publish(envelope.encode_request(request), delivery)
        except Unroutable as error:
            raise Unroutable(
                f"nobody has ever listened on queue '{queue}', or its host has left",
                field="queue",
                remedy="check the host's name, and that sev-agent runs there and reaches this RabbitMQ",
            ) from error

    async def _timed_out(self, method: str, queue: str, seconds: float) -> Unavailable:
        if not self._ready.is_set():
            why = f"; {self._fault.message}" if self._fault else ""
            return self._broker.unavailable(f"no reply queue within {seconds:g} s, so {method} was not sent{why}")
        consumers: int | None = None
        with contextlib.suppress(TimeoutError, BrokerUnavailable):
            async with asyncio.timeout(_DIAGNOSIS_TIMEOUT):
                consumers = await self.consumer_count(queue)
        why = "nobody consumes it now: its host is down, or cannot work" if consumers == 0 else "its host may be busy"
        return MessagingTimeout(
            f"no reply to {method} within {seconds:g} s from queue '{queue}'; {why}",
            remedy="ask the host's /readyz; the request may still have been done",
        )

    async def _receive(self, link: Link) -> None:
        """Take replies until the link or the channel is gone; then everyone who waits is told."""
        gone = asyncio.Event()
        channel = await link.channel()
        channel.close_callbacks.add(lambda *_: gone.set())
        name = f"reply_{uuid4().hex}"
        try:
            with broker_errors("set up the reply queue"):
                queue = await channel.declare_queue(
                    name, exclusive=True, auto_delete=True, timeout=self._broker.timeout
                )
                await queue.consume(self._on_reply, no_ack=True, timeout=self._broker.timeout)
            self._reply_queue = name
            self._fault = None
            self._ready.set()
            raise_if_cancelled()
            await gone.wait()
        finally:
            self._ready.clear()
            self._fail_waiting()
            with contextlib.suppress(BrokerUnavailable), broker_errors("close the channel"):
                async with asyncio.timeout(self._broker.timeout):
                    await channel.close()

    def _fail_waiting(self) -> None:
        for reply in self._waiting.values():
            if not reply.done():
                reply.set_exception(
                    BrokerUnavailable(
                        "the connection was lost while waiting for a reply",
                        remedy="ask again; the request may already have been done",
                    )
                )

    async def _on_reply(self, incoming: AbstractIncomingMessage) -> None:
        try:
            reply = envelope.decode_reply(envelope.unpack(incoming.body, max_bytes=self._max_message_bytes))
        except MalformedMessage as error:
            log.warning("rpc.reply.malformed", error=str(error))
            return
        waiting = self._waiting.get(reply.msg_id)
        if reply.ending and waiting is not None and not waiting.done():
            waiting.set_result(reply)
