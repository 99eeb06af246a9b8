"""Texts about servers without the names of hosts, which are none of a tenant's business. Pure."""

import re
from collections.abc import Iterable


def without_names(text: str, hosts: Iterable[str | None]) -> str:
    """``text`` with each of ``hosts`` called by its number, or plainly the server's host where there is one only.

    Also where a domain follows the name, or what a host's queues have before it and its resource providers after it.
    """
    names = list(dict.fromkeys(filter(None, hosts)))
    for number, name in enumerate(names, start=1):
        word = f"host {number}" if len(names) > 1 else "its host"
        text = _pattern(name).sub(word, text)
    return text


def _pattern(name: str) -> re.Pattern[str]:
    whole = rf"(?:host |sev_agent\.|sev_agent_query\.)?{re.escape(name)}(?:_amd_sev\w*)?(?:\.[A-Za-z0-9-]+)*"
    return re.compile(rf"(?<![\w.-]){whole}(?![\w-])", re.IGNORECASE)
