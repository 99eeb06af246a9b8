"""Reading what a client sends: bounded in size and depth, JSON and nothing else."""

import json
from typing import Any, NoReturn, TypeVar

from aiohttp import web
from pydantic import BaseModel, ValidationError

from sev_agent.api.faults import BadMediaType, BadRequest, TooLarge
from sev_agent.foreign_json import TooDeep, has_half_pair, texts

MAX_DEPTH = 16
"""Levels of nesting; the deepest body that means anything here has six."""

_JSON = "application/json"
_MAX_TOLD = 5
_MAX_PATH = 200

M = TypeVar("M", bound=BaseModel)


async def read_json(request: web.Request, max_bytes: int) -> Any:
    """The decoded body; ``None`` where there is none. Raises ``TooLarge``, ``BadMediaType``, ``BadRequest``."""
    if not request.can_read_body:
        return None
    if (request.content_length or 0) > max_bytes:
        raise _too_large(max_bytes)
    try:
        raw = await request.read()
    except web.HTTPRequestEntityTooLarge:
        raise _too_large(max_bytes) from None
    if not raw:
        return None
    if request.content_type != _JSON:
        raise BadMediaType(f"Unsupported Content-Type {request.content_type[:100]!r}", remedy=f"send {_JSON}")
    return decode(raw)


def decode(raw: bytes) -> Any:
    """JSON without what no store can keep: no NaN, no lone surrogate, no NUL, no depth over ``MAX_DEPTH``."""
    try:
        value = json.loads(raw, parse_constant=_refuse_constant)
        for text in texts(value, max_depth=MAX_DEPTH):
            check_text(text, "body")
    except (RecursionError, TooDeep):
        raise BadRequest(f"Malformed request body: nested over {MAX_DEPTH} levels", field="body") from None
    except (ValueError, UnicodeDecodeError) as error:
        raise BadRequest(f"Malformed request body: {str(error)[:200]}", field="body") from None
    return value


def parse(model: type[M], value: Any, where: str) -> M:
    """``value`` as ``model``; ``where`` (body, query) begins the paths in the text. Raises ``BadRequest``."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_input=False)
        texts = [f"{_path(fault['loc'], where)}: {_text(fault)}" for fault in faults[:_MAX_TOLD]]
        more = f"; and {len(faults) - _MAX_TOLD} more" if len(faults) > _MAX_TOLD else ""
        raise BadRequest("Invalid input. " + "; ".join(texts) + more) from None


def check_text(value: str, field: str) -> None:
    """Raises ``BadRequest`` for text that no database can keep."""
    if "\0" in value or has_half_pair(value):
        raise BadRequest("has a character that is not allowed", field=field)


def _path(location: tuple[int | str, ...], where: str) -> str:
    return (".".join(str(part) for part in location) or where)[:_MAX_PATH]


def _text(fault: Any) -> str:
    match fault["type"]:
        case "extra_forbidden":
            return "is not known here"
        case "missing":
            return "is required"
        case "value_error":
            return str(fault["msg"]).removeprefix("Value error, ")
        case _:
            return str(fault["msg"])


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _too_large(max_bytes: int) -> TooLarge:
    return TooLarge(f"Request is too large: over {max_bytes} bytes.", remedy="send less; user data has at most 65535")
