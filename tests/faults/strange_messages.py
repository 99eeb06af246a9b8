"""Messages as a broken or hostile peer sends them: good calls that were spoiled, and bytes that never were one."""

import copy
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

Arguments = Mapping[str, Any]

_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["", "\0", "../../etc/passwd", "<domain/>", "$(reboot)", "\ud800", "x" * 5000]),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=8), children, max_size=4),
    max_leaves=8,
)


@dataclass(frozen=True, slots=True)
class Strange:
    """What is sent. With a ``msg_id`` it is to be answered: its address is whole, and what else it is can be read."""

    body: bytes
    msg_id: str | None = None


def strange_messages(count: int, number: int, templates: Mapping[str, Arguments], *, reply_queue: str) -> list[Strange]:
    """``count`` messages for a queue, the same for the same ``number``; ``templates`` are good calls by method.

    A third of them, at least, are calls: they are to be answered in ``reply_queue``.
    """
    messages: list[Strange] = []

    @seed(number)
    @settings(
        max_examples=count,
        database=None,
        phases=[Phase.generate],
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(_messages(templates, reply_queue))
    def collect(message: Strange) -> None:
        messages.append(message)

    # Hypothesis stops early where it thinks that it has seen everything of a branch.
    while len(messages) < count:
        collect()
        number += 1
    return messages[:count]


def _messages(templates: Mapping[str, Arguments], reply_queue: str) -> st.SearchStrategy[Strange]:
    good = st.sampled_from(sorted(templates)).map(lambda method: _message(method, templates[method]))
    spoiled = st.tuples(good, st.lists(_spoilers(), min_size=1, max_size=2)).map(_apply)
    whole = spoiled.map(_envelope)
    rest = [
        st.tuples(whole, st.floats(0, 1)).map(lambda cut: cut[0][: int(len(cut[0]) * cut[1])]),
        st.tuples(whole, st.floats(0, 0.999), st.integers(0, 255)).map(_flip),
        _JSON.map(lambda value: json.dumps({"oslo.version": "2.0", "oslo.message": value}).encode()),
        _JSON.map(lambda value: json.dumps({"oslo.version": "2.0", "oslo.message": json.dumps(value)}).encode()),
        _JSON.map(lambda value: json.dumps(value).encode()),
        st.binary(max_size=200),
    ]
    calls = spoiled.map(lambda message: _call(message, reply_queue))
    casts = whole.map(Strange)
    # Most of them are messages still: what is none is refused before anything looks at it.
    kinds = [*(strategy.map(Strange) for strategy in rest), *[casts] * len(rest), *[calls] * 2 * len(rest)]
    return st.integers(0, len(kinds) - 1).flatmap(kinds.__getitem__)


def _call(message: Any, reply_queue: str) -> Strange:
    # Spoiled first: what becomes of a call whose own address is spoiled is nobody's to say.
    msg_id = uuid4().hex
    addressed = {**message, "_msg_id": msg_id, "_reply_q": reply_queue}
    return Strange(_envelope(addressed), msg_id if _is_json(message) else None)


def _is_json(value: Any) -> bool:
    """Whether it is JSON for others than Python too, which knows numbers that are none, and halves of characters."""
    try:
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except ValueError:
        return False
    return True


def _message(method: str, arguments: Arguments) -> dict[str, Any]:
    return {"method": method, "args": copy.deepcopy(dict(arguments)), "version": "1.0", "_unique_id": uuid4().hex}


def _spoilers() -> st.SearchStrategy[tuple[int, Any, str]]:
    """Which place of a document, what to put there, and how."""
    return st.tuples(st.integers(0, 10_000), _JSON, st.sampled_from(["replace", "remove", "add", "rename"]))


def _apply(spoiled: tuple[dict[str, Any], list[tuple[int, Any, str]]]) -> Any:
    message, changes = copy.deepcopy(spoiled[0]), spoiled[1]
    for place, value, how in changes:
        # The arguments have the most to look at; now and then it is the message around them.
        holders = list(_places(message["args"] if place % 8 and message.get("args") else message))
        holder, key = holders[place % len(holders)]
        match how:
            case "replace":
                holder[key] = value
            case "remove":
                del holder[key]
            case "rename":
                holder[f"{key}x"] = holder.pop(key)
            case _:
                holder[f"extra{place % 7}"] = value
        if not message or not isinstance(message.get("args", {}), dict):
            break
    return message


def _places(document: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str]]:
    for key, value in document.items():
        yield document, key
        if isinstance(value, dict):
            yield from _places(value)


def _envelope(message: Any) -> bytes:
    return json.dumps({"oslo.version": "2.0", "oslo.message": json.dumps(message)}).encode()


def _flip(given: tuple[bytes, float, int]) -> bytes:
    body, place, value = given
    changed = bytearray(body)
    changed[int(len(changed) * place)] = value
    return bytes(changed)
