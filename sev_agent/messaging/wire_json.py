"""The JSON of a message, which a stranger may have written: bounded, and checked part by part. No I/O."""

import json
import math
from collections.abc import Mapping
from typing import NoReturn, TypeAlias

from pydantic import JsonValue

from sev_agent.errors import InvalidRequest
from sev_agent.foreign_json import TooDeep, has_half_pair, texts

MAX_DEPTH = 32
"""Levels of lists and objects; the deepest honest message has seven."""

MAX_NAME = 255
"""Bound on everything that becomes a routing key, a header, a log field or a metric's label. AMQP's own for names."""

Arguments: TypeAlias = dict[str, JsonValue]


class MalformedMessage(InvalidRequest):
    """The bytes are not a message of this protocol; ``field`` names the part that is not."""

    code = "message.malformed"


def load_object(text: str, where: str) -> Arguments:
    """The object that ``text`` is, finite and bounded in depth. Raises ``MalformedMessage`` for the field ``where``."""
    try:
        value = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
    except RecursionError:
        raise MalformedMessage(f"is nested deeper than {MAX_DEPTH} levels", field=where) from None
    except ValueError as error:
        raise MalformedMessage(f"is not JSON: {error}", field=where) from None
    if not isinstance(value, dict):
        raise MalformedMessage(f"is {brief(value)}, not an object", field=where)
    try:
        if any(has_half_pair(each) for each in texts(value, max_depth=MAX_DEPTH)):
            raise MalformedMessage("holds half of a surrogate pair", field=where)
    except TooDeep as error:
        raise MalformedMessage(f"is {error}", field=where) from None
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is too large a number")
    return value


def text_of(
    message: Mapping[str, JsonValue], name: str, *, default: str | None = None, limit: int | None = MAX_NAME
) -> str:
    """The text ``name`` of ``message``, printable and of 1 to ``limit`` characters. Raises ``MalformedMessage``."""
    value = message.get(name, default)
    if value is None:
        raise MalformedMessage("is missing", field=name)
    if not isinstance(value, str):
        raise MalformedMessage(f"is {brief(value)}, not text", field=name)
    if limit is not None and not (0 < len(value) <= limit and value.isprintable()):
        raise MalformedMessage(f"is not 1 to {limit} printable characters", field=name)
    return value


def optional_text(value: JsonValue) -> str | None:
    """``value``, if it is text."""
    return value if isinstance(value, str) else None


def brief(value: object) -> str:
    """``value`` in a few words, for a message to whoever sent it."""
    match value:
        case None:
            return "missing"
        case dict():
            return "an object"
        case list():
            return "a list"
        case str():
            return repr(value[:40])
        case _:
            return repr(value)[:40]
