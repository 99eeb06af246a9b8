"""One request, from its bytes to its reply, its dead letter or its next delivery: journal, then ack."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Generic, TypeVar

import structlog
from aio_pika.abc import AbstractIncomingMessage
from pydantic import BaseModel, JsonValue

from sev_agent import schema
from sev_agent.crash_points import CrashPoint, reached
from sev_agent.errors import InvalidRequest, SevAgentError, Unavailable
from sev_agent.messaging import envelope, topology
from sev_agent.messaging.broker import Broker, BrokerUnavailable, Delivery, Unroutable, broker_errors
from sev_agent.messaging.envelope import ReplyAddress, Request, RequestContext
from sev_agent.messaging.wire_json import Arguments

log = structlog.stdlib.get_logger(__name__)

_RETRY_FIRST = 0.2
_RETRY_MAX = 5.0
_MAX_HEADER = 1000
_MAX_DOUBLINGS = 10
UNKNOWN = "unknown"

M = TypeVar("M", bound=BaseModel)


class Outcome(StrEnum):
    """How a request ended: done, refused by its handler, not understandable, broken by a fault of ours."""

    OK = "ok"
    REJECTED = "rejected"
    INVALID = "invalid"
    FAILED = "failed"


class UnknownMethod(InvalidRequest):
    """The queue has no such method."""

    code = "message.unknown_method"


class UnsupportedVersion(InvalidRequest):
    """The caller speaks a version that this host does not."""

    code = "message.unsupported_version"


class HandlerFault(SevAgentError):
    """The host has a fault of its own; its log has the traceback."""

    code = "internal"


class HandlerTimeout(Unavailable):
    """The host took too long over the request."""

    code = "timeout"


@dataclass(frozen=True, slots=True, kw_only=True)
class Method(Generic[M]):
    """A method of a queue. The handler returns as soon as the request is durably written down, or answered.

    It must give the same outcome when the same request comes again: redelivery is part of the protocol. ``timeout`` is
    for a handler that may take longer than the others of its server.
    """

    name: str
    arguments: type[M]
    handler: Callable[[RequestContext, M], Awaitable[JsonValue]]
    timeout: float | None = None


OnOutcome = Callable[[str, Outcome], None]
"""Takes the method's name (``unknown`` for none of ours) and how it ended."""

OnRejected = Callable[[RequestContext, str, Arguments | None, SevAgentError], Awaitable[None]]
"""Takes what is known of a request that was refused: context, method, arguments as sent, and the reason."""


class Answering:
    """Answers the requests of ``queue`` by ``methods``, as ``RpcServer`` says. ``handler_timeout`` is seconds."""

    def __init__(
        self,
        broker: Broker,
        *,
        queue: str,
        methods: Iterable[Method[Any]],
        max_message_bytes: int,
        handler_timeout: float,
        version: str,
        namespace: str | None,
        on_outcome: OnOutcome | None,
        on_rejected: OnRejected | None,
    ) -> None:
        self._broker = broker
        self._queue = queue
        self._methods = {method.name: method for method in methods}
        self._max_message_bytes = max_message_bytes
        self._handler_timeout = handler_timeout
        self._version = version
        self._namespace = namespace
        self._on_outcome = on_outcome
        self._on_rejected = on_rejected

    async def answer(self, incoming: AbstractIncomingMessage) -> None:
        """Have one request handled, and settle its message, whatever comes of it."""
        received = _Received(incoming)
        try:
            outcome = await self._outcome_of(received)
        except SevAgentError as error:
            # Neither answered nor dead-lettered, so not acked: it comes again.
            log.warning("rpc.unsettled", queue=self._queue, error=str(error))
            await self._settle(incoming.nack(requeue=True))
            return
        log.debug("rpc.done", outcome=outcome)
        if self._on_outcome is not None:
            self._on_outcome(received.known_method, outcome)

    async def _outcome_of(self, received: "_Received") -> Outcome:
        outcome = Outcome.INVALID
        try:
            request = received.decode(self._max_message_bytes)
            structlog.contextvars.bind_contextvars(request_id=request.context.request_id, method=request.method)
            method = self._method(request)
            received.known_method = method.name
            arguments = schema.parse(method.arguments, request.arguments)
            outcome = Outcome.REJECTED
            reached(CrashPoint.REQUEST_BEFORE_HANDLER)
            result = await self._handle_within(method, request.context, arguments)
            reached(CrashPoint.REQUEST_BEFORE_REPLY)
            await self._reply(received.reply_to, result=result)
        except BrokerUnavailable:
            raise
        except SevAgentError as error:
            await self._refuse(received, error)
            return outcome
        except Exception as error:
            log.exception("rpc.handler.failed", queue=self._queue)
            await self._fail(received, error)
            return Outcome.FAILED
        reached(CrashPoint.REQUEST_BEFORE_ACK)
        await self._settle(received.incoming.ack())
        reached(CrashPoint.REQUEST_AFTER_ACK)
        return Outcome.OK

    async def _handle_within(self, method: Method[Any], context: RequestContext, arguments: BaseModel) -> JsonValue:
        seconds = method.timeout or self._handler_timeout
        try:
            async with asyncio.timeout(seconds) as limit:
                return await method.handler(context, arguments)
        except TimeoutError:
            if limit.expired():
                raise _Late(method.name, seconds) from None
            raise

    def _method(self, request: Request) -> Method[Any]:
        if request.namespace != self._namespace or not _is_compatible(self._version, request.version):
            raise UnsupportedVersion(
                f"version {request.version}, namespace {request.namespace} is not served here",
                field="version",
                remedy=f"use version {self._version}, namespace {self._namespace}",
            )
        if request.method not in self._methods:
            raise UnknownMethod(
                f"queue '{self._queue}' has no method '{request.method}'",
                field="method",
                remedy=f"use one of {', '.join(sorted(self._methods))}",
            )
        return self._methods[request.method]

    async def _refuse(self, received: "_Received", error: SevAgentError) -> None:
        log.warning("rpc.refused", queue=self._queue, code=error.code, error=str(error))
        if received.reply_to is not None:
            await self._reply(received.reply_to, error=error)
        else:
            reached(CrashPoint.REFUSAL_BEFORE_DEAD_LETTER)
            await self._dead_letter(received.incoming, error)
            reached(CrashPoint.REFUSAL_AFTER_DEAD_LETTER)
        await self._tell_rejected(received, error)
        reached(CrashPoint.REFUSAL_AFTER_NOTICE)
        await self._settle(received.incoming.ack())

    async def _fail(self, received: "_Received", error: Exception) -> None:
        if received.reply_to is not None:
            await self._reply(received.reply_to, error=_told(error))
            await self._settle(received.incoming.ack())
            return
        # The delivery limit counts attempts; without a pause they would all be used up in the same bad moment.
        # The count is a header, which a sender can set to any number.
        doublings = min(received.earlier_deliveries, _MAX_DOUBLINGS)
        await asyncio.sleep(min(_RETRY_FIRST * 2**doublings, _RETRY_MAX))
        await self._settle(received.incoming.nack(requeue=True))

    async def _reply(
        self, address: ReplyAddress | None, *, result: JsonValue = None, error: SevAgentError | None = None
    ) -> None:
        if address is None:
            return
        failure = None if error is None else envelope.failure_of(error)
        body = envelope.encode_reply(envelope.Reply(msg_id=address.msg_id, result=result, failure=failure))
        try:
            await self._broker.publish(body, Delivery(exchange="", routing_key=address.queue))
        except Unroutable:
            log.info("rpc.reply.dropped", reply_queue=address.queue, reason="the caller is gone")

    async def _dead_letter(self, incoming: AbstractIncomingMessage, error: SevAgentError) -> None:
        headers = {
            "x-sev-agent-reason": str(error)[:_MAX_HEADER],
            "x-sev-agent-code": error.code,
            "x-sev-agent-field": (error.field or "")[:_MAX_HEADER],
            "x-original-queue": self._queue,
        }
        delivery = Delivery(exchange="", routing_key=topology.DEAD_LETTER_QUEUE, headers=headers)
        try:
            await self._broker.publish(incoming.body, delivery)
        except Unroutable:
            channel = await (await self._broker.link()).channel()
            with broker_errors("declare the dead-letter queue"):
                await topology.DEAD_LETTERS.declare(channel, timeout=self._broker.timeout)
                await channel.close()
            await self._broker.publish(incoming.body, delivery)

    async def _tell_rejected(self, received: "_Received", error: SevAgentError) -> None:
        if self._on_rejected is None:
            return
        try:
            async with asyncio.timeout(self._handler_timeout):
                await self._on_rejected(received.context, received.method, received.arguments, error)
        except Exception:
            log.exception("rpc.on_rejected.failed", queue=self._queue)

    async def _settle(self, settling: Awaitable[None]) -> None:
        """Ack or nack; on a channel that is gone the broker delivers again, as it would after a lost ack."""
        try:
            with broker_errors("settle the message"):
                async with asyncio.timeout(self._broker.timeout):
                    await settling
        except BrokerUnavailable:
            log.info("rpc.ack.lost", queue=self._queue)


class _Received:
    """A message and what is known of it so far, however little."""

    def __init__(self, incoming: AbstractIncomingMessage) -> None:
        self.incoming = incoming
        self.context = RequestContext()
        self.method = UNKNOWN
        self.known_method = UNKNOWN
        self.arguments: Arguments | None = None
        self.reply_to: ReplyAddress | None = None

    def decode(self, max_bytes: int) -> Request:
        message = envelope.unpack(self.incoming.body, max_bytes=max_bytes)
        self.reply_to = envelope.reply_address(message)
        self.context = envelope.decode_context(message)
        request = envelope.decode_request(message)
        self.context = request.context
        self.method = request.method
        self.arguments = request.arguments
        return request

    @property
    def earlier_deliveries(self) -> int:
        count = self.incoming.headers.get("x-delivery-count", 0)
        return count if isinstance(count, int) else 0


class _Late(Exception):
    """A handler took longer than it may."""

    def __init__(self, method: str, seconds: float) -> None:
        super().__init__(f"{method} took longer than {seconds:g} s")


def _told(error: Exception) -> SevAgentError:
    """What a caller hears of a fault of ours."""
    match error:
        case _Late():
            return HandlerTimeout(f"{error}, and was ended", remedy="see what keeps the host busy, then ask again")
        case _:
            return HandlerFault("the host failed to handle the request", remedy="look for the request in its log")


def _is_compatible(served: str, asked: str) -> bool:
    """oslo.messaging's rule: the same major number, and no newer minor than served."""
    try:
        (major, minor), (asked_major, asked_minor) = (tuple(map(int, v.split("."))) for v in (served, asked))
    except ValueError:
        return False
    return asked_major == major and asked_minor <= minor
