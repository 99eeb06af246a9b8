"""oslo.messaging's wire format, honest and hostile."""

import contextlib
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sev_agent.errors import Conflict
from sev_agent.messaging import envelope
from sev_agent.messaging.envelope import Failure, Notification, Priority, Reply, ReplyAddress, Request, RequestContext
from sev_agent.messaging.wire_json import MalformedMessage

LIMIT = 1_000_000

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
names = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=40)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**80), 2**80) | st.floats(allow_nan=False, allow_infinity=False) | text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=12,
)
objects = st.dictionaries(text, values, max_size=5)
contexts = st.builds(RequestContext, request_id=names, user_id=st.none() | names, project_id=st.none() | names)
addresses = st.builds(ReplyAddress, queue=names, msg_id=names)
failures = st.builds(
    Failure,
    kind=names,
    message=text,
    code=names,
    field=st.none() | names,
    remedy=st.none() | text,
    retryable=st.booleans(),
)
keys = st.sampled_from(
    [
        "method",
        "args",
        "version",
        "namespace",
        "_msg_id",
        "_reply_q",
        "_context_request_id",
        "result",
        "failure",
        "ending",
        "payload",
        "priority",
        "timestamp",
        "event_type",
        "publisher_id",
        "message_id",
    ]
)


def packed(message: Any) -> bytes:
    return json.dumps({"oslo.version": "2.0", "oslo.message": json.dumps(message)}).encode()


def decode_all(body: bytes) -> None:
    """Everything that is ever tried on a message; nothing but ``MalformedMessage`` may come out."""
    with contextlib.suppress(MalformedMessage):
        message = envelope.unpack(body, max_bytes=LIMIT)
        envelope.reply_address(message)
        for decode in (envelope.decode_request, envelope.decode_reply, envelope.decode_notification):
            with contextlib.suppress(MalformedMessage):
                decode(message)


@given(st.binary(max_size=200) | text.map(str.encode))
def test_random_bytes_are_refused_only(body: bytes) -> None:
    """Bytes that nobody meant raise ``MalformedMessage`` with a field, and nothing else."""
    decode_all(body)


@given(values)
def test_random_json_is_refused_only(value: Any) -> None:
    """JSON of any shape, inside and outside the envelope, raises ``MalformedMessage`` and nothing else."""
    decode_all(json.dumps(value).encode())
    decode_all(packed(value))


@given(st.dictionaries(keys, values | names, max_size=10))
def test_near_misses_are_refused_only(message: dict[str, Any]) -> None:
    """The protocol's own keys with any values raise ``MalformedMessage`` and nothing else."""
    decode_all(packed(message))


@given(method=names, arguments=objects, context=contexts, reply_to=st.none() | addresses)
def test_request_survives_the_wire(
    method: str, arguments: dict[str, Any], context: RequestContext, reply_to: ReplyAddress | None
) -> None:
    """What is encoded is decoded to the same request."""
    request = Request(method=method, arguments=arguments, context=context, reply_to=reply_to)
    assert envelope.decode_request(envelope.unpack(envelope.encode_request(request), max_bytes=LIMIT)) == request


@given(msg_id=names, result=values, failure=st.none() | failures, ending=st.booleans())
def test_reply_survives_the_wire(msg_id: str, result: Any, failure: Failure | None, *, ending: bool) -> None:
    """What is encoded is decoded to the same reply."""
    reply = Reply(msg_id=msg_id, result=result, failure=failure, ending=ending)
    assert envelope.decode_reply(envelope.unpack(envelope.encode_reply(reply), max_bytes=LIMIT)) == reply


@given(payload=objects, context=contexts, priority=st.sampled_from(Priority), at=st.integers(0, 2**52))
def test_notification_survives_the_wire(
    payload: dict[str, Any], context: RequestContext, priority: Priority, at: int
) -> None:
    """What is encoded is decoded to the same notification."""
    notification = Notification(
        event_type="sev.instance.create.end",
        payload=payload,
        publisher_id="sev_agent.host-1",
        priority=priority,
        context=context,
        timestamp=datetime.fromtimestamp(0, UTC) + timedelta(microseconds=at),
    )
    body = envelope.encode_notification(notification)
    assert envelope.decode_notification(envelope.unpack(body, max_bytes=LIMIT)) == notification


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"\xff", "body"),
        (b"[" * 100_000, "body"),
        (b"[]", "body"),
        (b"NaN", "body"),
        (b"1" * 5000, "body"),
        (b" " * (LIMIT + 1), "body"),
        (b'{"oslo.version": "1.0", "oslo.message": "{}"}', "oslo.version"),
        (b'{"oslo.version": "2.0"}', "oslo.message"),
        (b'{"oslo.version": "2.0", "oslo.message": {}}', "oslo.message"),
        (b'{"oslo.version": "2.0", "oslo.message": "["}', "oslo.message"),
        (packed([[]] * 3), "oslo.message"),
        (packed({"a": json.loads("[" * 40 + "]" * 40)}), "oslo.message"),
        (packed({"a": {"b": "\ud800"}}), "oslo.message"),
        (packed({"\udfff": 1}), "oslo.message"),
        (packed({"a": float("inf")}), "oslo.message"),
        (packed({"a": 1}).replace(b"1}", b"1e999}"), "oslo.message"),
    ],
)
def test_hostile_envelope_is_refused(body: bytes, field: str) -> None:
    """Each known way to hurt a decoder is refused, and the error names the part."""
    with pytest.raises(MalformedMessage) as caught:
        envelope.unpack(body, max_bytes=LIMIT)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("message", "field"),
    [
        ({}, "method"),
        ({"method": 3}, "method"),
        ({"method": ""}, "method"),
        ({"method": "a\nb"}, "method"),
        ({"method": "m" * 256}, "method"),
        ({"method": "m", "args": [1]}, "args"),
        ({"method": "m", "args": None}, "args"),
        ({"method": "m", "version": 1.0}, "version"),
        ({"method": "m", "namespace": 5}, "namespace"),
    ],
)
def test_request_that_is_none_names_the_field(message: dict[str, Any], field: str) -> None:
    """A part of the wrong shape is named."""
    with pytest.raises(MalformedMessage) as caught:
        envelope.decode_request(message)
    assert caught.value.field == field


def test_context_is_read_liberally() -> None:
    """Older names count, strange values are left out, and a missing request identifier is made anew."""
    context = envelope.decode_context(
        {"_context_user": "u", "_context_tenant": "p", "_context_request_id": 5, "_context_x": []}
    )
    assert (context.user_id, context.project_id) == ("u", "p")
    assert context.request_id.startswith("req-")


def test_failure_tells_a_stock_client_everything() -> None:
    """oslo.messaging shows ``class`` and ``message`` and keeps the keys that it looks for."""
    error = Conflict("exists", field="instance.uuid", remedy="choose another")
    body = envelope.encode_reply(Reply(msg_id="1", failure=envelope.failure_of(error)))
    message = envelope.unpack(body, max_bytes=LIMIT)
    failure = json.loads(str(message["failure"]))
    assert set(failure) == {"class", "module", "message", "tb", "args", "kwargs"}
    assert (failure["class"], failure["message"]) == ("Conflict", "instance.uuid: exists (choose another)")
    assert failure["kwargs"] == {
        "code": "conflict",
        "field": "instance.uuid",
        "remedy": "choose another",
        "retryable": False,
    }
    assert message["ending"] is True


def test_arguments_that_are_not_json_are_the_senders_error() -> None:
    """Nothing that the other side could not read leaves."""
    request = Request(method="m", arguments={"a": float("nan")}, context=RequestContext())
    with pytest.raises(ValueError, match="JSON"):
        envelope.encode_request(request)
