"""Texts about servers without the names of hosts and files there, which are none of a tenant's business. Pure."""

import re
from collections.abc import Iterable
from typing import Final

_PATH: Final = re.compile(
    r"(?<![\w.:/~-])/(?:var|run|etc|usr|opt|srv|mnt|home|root|tmp|dev|proc|sys|boot|lib|lib64|bin|sbin|data)"
    r"(?:/[^\s'\"`<>|,;:()\[\]{}]*)?(?![\w-])"
)
"""An absolute path below what a host's root has; neither a URL's path, nor an API's."""
_FILE: Final = "a file of the host"
_DISTINCT: Final = re.compile(r"(?=.*[\d-]).{3,}")
"""A host's name that is no word of a sentence, as ``full`` or ``host`` would be."""


def without_names(text: str, hosts: Iterable[str | None]) -> str:
    """``text`` with each of ``hosts`` called by its number, or plainly the server's host where there is one only.

    Also where a domain follows the name, or what a host's queues have before it and its resource providers after it.
    Of a name with a domain also the first label alone, if it has three characters or more, with a digit or a dash among
    them: another could be a word of the text.
    """
    names = list(dict.fromkeys(filter(None, hosts)))
    for number, name in enumerate(names, start=1):
        word = f"host {number}" if len(names) > 1 else "its host"
        text = _pattern(name).sub(word, text)
    return text


def _pattern(name: str) -> re.Pattern[str]:
    short, _, domain = name.partition(".")
    known = re.escape(name)
    if domain and _DISTINCT.fullmatch(short):
        known = rf"(?:{known}|{re.escape(short)})"
    whole = rf"(?:host |sev_agent\.|sev_agent_query\.)?{known}(?:_amd_sev\w*)?(?:\.[A-Za-z0-9-]+)*"
    return re.compile(rf"(?<![\w.-]){whole}(?![\w-])", re.IGNORECASE)


def without_paths(text: str) -> str:
    """``text`` with every absolute path of a file on a host called that, and without its dot at a sentence's end."""
    return _PATH.sub(lambda found: _FILE + ("." if found[0].endswith(".") else ""), text)
