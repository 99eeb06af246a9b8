"""Options that modprobe.d gives to modules."""

import re
from dataclasses import dataclass
from typing import Final

from sev_agent.hypervisor.host_files import HostFiles

DIRECTORIES: Final = (
    "etc/modprobe.d",
    "run/modprobe.d",
    "usr/local/lib/modprobe.d",
    "usr/lib/modprobe.d",
    "lib/modprobe.d",
)
"""The first that has a file of a name counts. Source: modprobe.d(5)."""

_OPTIONS = re.compile(r"^\s*options\s+(\S+)\s+(.*)$", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """``value`` is an empty text for a bare parameter. ``source`` is the file."""

    parameter: str
    value: str
    source: str


def kvm_amd(files: HostFiles) -> list[Option]:
    """The options of module kvm_amd, in the order in which the module gets them: the last of a parameter counts.

    Raises ``PermissionError``.
    """
    by_name: dict[str, str] = {}
    for directory in DIRECTORIES:
        for name in files.names(directory):
            if name.endswith(".conf"):
                by_name.setdefault(name, f"{directory}/{name}")
    found = []
    for _, path in sorted(by_name.items()):
        text = (files.text_or_none(path) or "").replace("\\\n", " ")
        for module, options in _OPTIONS.findall(text):
            if module.replace("-", "_") != "kvm_amd":
                continue
            for word in options.split():
                parameter, _, value = word.partition("=")
                found.append(Option(parameter=parameter, value=value, source=files.where(path)))
    return found
