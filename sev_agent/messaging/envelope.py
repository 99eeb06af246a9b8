"""oslo.messaging's wire format, version 2.0: requests, replies, failures and notifications as bytes. No I/O.

Source: ``oslo_messaging/_drivers/common.py`` (``serialize_msg``, ``serialize_remote_exception``) and ``amqpdriver.py``.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any
from uuid import uuid4

from pydantic import JsonValue

from sev_agent.errors import SevAgentError
from sev_agent.messaging.wire_json import (
    MAX_NAME,
    Arguments,
    MalformedMessage,
    brief,
    load_object,
    optional_text,
    text_of,
)

ENVELOPE_VERSION = "2.0"

_VERSION_KEY = "oslo.version"
_MESSAGE_KEY = "oslo.message"
_CONTEXT_PREFIX = "_context_"


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestContext:
    """Who asked, and the identifier that ties together all that follows from it."""

    request_id: str = field(default_factory=lambda: f"req-{uuid4()}")
    user_id: str | None = None
    project_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplyAddress:
    """Where the reply to a call goes: a queue behind the default exchange, and the call's identifier."""

    queue: str
    msg_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A method to run. A call has a ``reply_to``, a cast has none."""

    method: str
    arguments: Arguments
    context: RequestContext
    version: str = "1.0"
    namespace: str | None = None
    reply_to: ReplyAddress | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """What a remote host said went wrong. ``code`` is ``None`` when it was no error of this project's."""

    kind: str
    message: str
    code: str | None = None
    field: str | None = None
    remedy: str | None = None
    retryable: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """The answer to a call. ``ending`` is false for the heartbeat of a long one, which carries nothing else."""

    msg_id: str
    result: JsonValue = None
    failure: Failure | None = None
    ending: bool = True


class Priority(StrEnum):
    """The two of oslo's notification priorities that are used here; each is a topic of its own."""

    INFO = "info"
    ERROR = "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class Notification:
    """Something that happened. ``message_id`` is the same for every delivery of it; ``timestamp`` is UTC."""

    event_type: str
    payload: Arguments
    publisher_id: str
    priority: Priority = Priority.INFO
    context: RequestContext = field(default_factory=RequestContext)
    message_id: str = field(default_factory=lambda: str(uuid4()))
    timestamp: datetime = field(default_factory=lambda: datetime.now(UTC))


def unpack(body: bytes, *, max_bytes: int) -> Arguments:
    """Open the envelope and return the message in it, bounded in size and depth. Raises ``MalformedMessage``."""
    if len(body) > max_bytes:
        raise MalformedMessage(
            f"the message has {len(body)} bytes, over the limit of {max_bytes}",
            field="body",
            remedy="send less, or raise messaging.max_message_bytes on the host",
        )
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise MalformedMessage(f"is not UTF-8: {error.reason} at byte {error.start}", field="body") from None
    envelope = load_object(text, "body")
    version = envelope.get(_VERSION_KEY)
    if version != ENVELOPE_VERSION:
        raise MalformedMessage(
            f"the envelope's version is {brief(version)}, not '{ENVELOPE_VERSION}'",
            field=_VERSION_KEY,
            remedy="send oslo.messaging's envelope, version 2.0",
        )
    return load_object(text_of(envelope, _MESSAGE_KEY, limit=None), _MESSAGE_KEY)


def reply_address(message: Mapping[str, JsonValue]) -> ReplyAddress | None:
    """Where to send even the news that the rest of ``message`` is malformed, or ``None`` for a cast."""
    queue, msg_id = message.get("_reply_q"), message.get("_msg_id")
    if isinstance(queue, str) and isinstance(msg_id, str) and 0 < len(queue.encode()) <= MAX_NAME and msg_id:
        return ReplyAddress(queue=queue, msg_id=msg_id)
    return None


def decode_request(message: Arguments) -> Request:
    """The request in an unpacked message. Raises ``MalformedMessage``."""
    arguments = message.get("args", {})
    if not isinstance(arguments, dict):
        raise MalformedMessage(f"is {brief(arguments)}, not an object", field="args")
    namespace = message.get("namespace")
    return Request(
        method=text_of(message, "method"),
        arguments=arguments,
        version=text_of(message, "version", default="1.0"),
        namespace=None if namespace is None else text_of(message, "namespace"),
        context=decode_context(message),
        reply_to=reply_address(message),
    )


def decode_context(message: Mapping[str, JsonValue]) -> RequestContext:
    """The sender's context, liberally: what is missing or strange in it is made anew or left out."""
    request_id = _context_value(message, "request_id")
    return RequestContext(
        **({} if request_id is None else {"request_id": request_id}),
        user_id=_context_value(message, "user_id", "user"),
        project_id=_context_value(message, "project_id", "tenant"),
    )


def decode_reply(message: Arguments) -> Reply:
    """The reply in an unpacked message. Raises ``MalformedMessage``."""
    ending = message.get("ending", True)
    failure = message.get("failure")
    return Reply(
        msg_id=text_of(message, "_msg_id"),
        result=message.get("result"),
        failure=None if not failure else _decode_failure(text_of(message, "failure", limit=None)),
        ending=ending if isinstance(ending, bool) else True,
    )


def decode_notification(message: Arguments) -> Notification:
    """The notification in an unpacked message. Raises ``MalformedMessage``."""
    payload = message.get("payload", {})
    if not isinstance(payload, dict):
        raise MalformedMessage(f"is {brief(payload)}, not an object", field="payload")
    try:
        priority = Priority(text_of(message, "priority").lower())
    except ValueError as error:
        raise MalformedMessage(str(error), field="priority") from None
    try:
        timestamp = datetime.fromisoformat(text_of(message, "timestamp"))
    except ValueError as error:
        raise MalformedMessage(str(error), field="timestamp") from None
    return Notification(
        event_type=text_of(message, "event_type"),
        payload=payload,
        publisher_id=text_of(message, "publisher_id"),
        priority=priority,
        context=decode_context(message),
        message_id=text_of(message, "message_id"),
        timestamp=timestamp if timestamp.tzinfo else timestamp.replace(tzinfo=UTC),
    )


def encode_request(request: Request) -> bytes:
    """Bytes of a request. Raises ``TypeError`` or ``ValueError`` for arguments that are not JSON."""
    message: dict[str, Any] = {"method": request.method, "args": request.arguments, "version": request.version}
    if request.namespace is not None:
        message["namespace"] = request.namespace
    if request.reply_to is not None:
        message |= {"_msg_id": request.reply_to.msg_id, "_reply_q": request.reply_to.queue, "_timeout": None}
    return _pack(message | _encode_context(request.context))


def encode_reply(reply: Reply) -> bytes:
    """Bytes of a reply. Raises ``TypeError`` or ``ValueError`` for a result that is not JSON."""
    return _pack(
        {
            "result": reply.result,
            "failure": None if reply.failure is None else _encode_failure(reply.failure),
            "ending": reply.ending,
            "_msg_id": reply.msg_id,
        }
    )


def encode_notification(notification: Notification) -> bytes:
    """Bytes of a notification. Raises ``TypeError`` or ``ValueError`` for a payload that is not JSON."""
    message: dict[str, Any] = {
        "message_id": notification.message_id,
        "publisher_id": notification.publisher_id,
        "event_type": notification.event_type,
        "priority": notification.priority.upper(),
        "payload": notification.payload,
        # oslo's own form: UTC without saying so.
        "timestamp": str(notification.timestamp.astimezone(UTC).replace(tzinfo=None)),
    }
    return _pack(message | _encode_context(notification.context))


def failure_of(error: SevAgentError) -> Failure:
    """``error`` as it travels to the caller."""
    return Failure(
        kind=type(error).__name__,
        message=error.message,
        code=error.code,
        field=error.field,
        remedy=error.remedy,
        retryable=error.retryable,
    )


def _pack(message: Mapping[str, Any]) -> bytes:
    text = json.dumps({**message, "_unique_id": uuid4().hex}, allow_nan=False, separators=(",", ":"))
    return json.dumps({_VERSION_KEY: ENVELOPE_VERSION, _MESSAGE_KEY: text}, separators=(",", ":")).encode()


def _encode_context(context: RequestContext) -> dict[str, Any]:
    return {
        f"{_CONTEXT_PREFIX}request_id": context.request_id,
        f"{_CONTEXT_PREFIX}user_id": context.user_id,
        f"{_CONTEXT_PREFIX}project_id": context.project_id,
    }


def _context_value(message: Mapping[str, JsonValue], *names: str) -> str | None:
    for name in names:
        value = message.get(_CONTEXT_PREFIX + name)
        if isinstance(value, str) and 0 < len(value) <= MAX_NAME and value.isprintable():
            return value
    return None


def _encode_failure(failure: Failure) -> str:
    where = f"{failure.field}: " if failure.field else ""
    what_next = f" ({failure.remedy})" if failure.remedy else ""
    return json.dumps(
        {
            "class": failure.kind,
            "module": "sev_agent.errors",
            # A stock client shows this text and drops the rest, so it says everything.
            "message": f"{where}{failure.message}{what_next}",
            "tb": [],
            "args": [failure.message],
            "kwargs": {
                "code": failure.code,
                "field": failure.field,
                "remedy": failure.remedy,
                "retryable": failure.retryable,
            },
        }
    )


def _decode_failure(text: str) -> Failure:
    fault = load_object(text, "failure")
    kind, message = fault.get("class"), fault.get("message")
    detail, arguments = fault.get("kwargs"), fault.get("args")
    known = detail if isinstance(detail, dict) and isinstance(detail.get("code"), str) else {}
    if known and isinstance(arguments, list) and arguments and isinstance(arguments[0], str):
        message = arguments[0]
    return Failure(
        kind=kind if isinstance(kind, str) else "Exception",
        message=message if isinstance(message, str) else "no text",
        code=optional_text(known.get("code")),
        field=optional_text(known.get("field")),
        remedy=optional_text(known.get("remedy")),
        retryable=known.get("retryable") is True,
    )
