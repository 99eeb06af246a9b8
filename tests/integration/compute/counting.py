"""How often libvirt is asked: its C functions, counted."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import libvirt  # noqa: TID251 - the count is of libvirt's own calls
import pytest

_LOCAL = frozenset({"virDomainGetName", "virDomainGetUUID", "virDomainFree", "virConnectRef", "virEventRunDefaultImpl"})
"""Answered from what the client has in hand already, without a message to libvirtd."""


def count_libvirt_calls(patch: pytest.MonkeyPatch) -> Counter[str]:
    """The calls that would be messages to a libvirtd, by name, from now on."""
    calls: Counter[str] = Counter()
    patch.setattr(libvirt, "libvirtmod", _Counting(libvirt.libvirtmod, calls))
    return calls


class _Counting:
    def __init__(self, module: Any, calls: Counter[str]) -> None:
        self._module = module
        self._calls = calls

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._module, name)
        return found if name in _LOCAL or not callable(found) else self._counted(name, found)

    def _counted(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **named: Any) -> Any:
            self._calls[name] += 1
            return function(*arguments, **named)

        return counted
