"""Looking through JSON that a stranger sent, however deep it is."""

from collections.abc import Iterator
from typing import Any


class TooDeep(ValueError):
    """The value is nested deeper than anything that is meant."""


def texts(root: Any, *, max_depth: int) -> Iterator[str]:
    """Every text in ``root``, keys too. Raises ``TooDeep`` where lists and objects go over ``max_depth`` levels."""
    level = [root]
    for _ in range(max_depth):
        deeper: list[Any] = []
        for value in level:
            match value:
                case str():
                    yield value
                case list():
                    deeper += value
                case dict():
                    deeper += value.keys()
                    deeper += value.values()
        if not deeper:
            return
        level = deeper
    raise TooDeep(f"nested deeper than {max_depth} levels")


def has_half_pair(text: str) -> bool:
    """Whether half of a surrogate pair is in ``text``: valid in JSON, but in nothing that takes UTF-8."""
    return not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text)
