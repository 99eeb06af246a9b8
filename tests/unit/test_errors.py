"""The root of all errors, and what they say."""

import importlib
import pkgutil
import re

import pytest

import sev_agent
from sev_agent.errors import Conflict, Exhausted, InvalidRequest, NotFound, SevAgentError, Unavailable

for _module in pkgutil.walk_packages(sev_agent.__path__, "sev_agent."):
    if not _module.name.endswith("__main__"):
        importlib.import_module(_module.name)


def _all(root: type[SevAgentError]) -> list[type[SevAgentError]]:
    return [root, *(found for kind in root.__subclasses__() for found in _all(kind))]


ERRORS = sorted(set(_all(SevAgentError)), key=lambda kind: kind.__qualname__)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (SevAgentError("it failed"), "it failed"),
        (SevAgentError("is wrong", field="instance.name"), "instance.name: is wrong"),
        (SevAgentError("is wrong", remedy="correct it"), "is wrong (correct it)"),
        (SevAgentError("is wrong", field="a.b", remedy="correct it"), "a.b: is wrong (correct it)"),
        (SevAgentError("wrong:\n  a\n  b", remedy="correct each"), "wrong:\n  a\n  b\n(correct each)"),
    ],
)
def test_text(error: SevAgentError, text: str) -> None:
    """Field, message and remedy are one line for a person."""
    assert str(error) == text


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.__qualname__)
def test_every_error(kind: type[SevAgentError]) -> None:
    """Every error has a dotted code, fit for a metric's label."""
    assert re.fullmatch(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)*", kind.code)


@pytest.mark.parametrize(
    ("kind", "retryable"),
    [(InvalidRequest, False), (NotFound, False), (Conflict, False), (Unavailable, True), (Exhausted, True)],
)
def test_retryable(kind: type[SevAgentError], retryable: bool) -> None:  # noqa: FBT001 - a parameter
    """What another host or a later time may heal can be tried again."""
    assert kind.retryable is retryable
