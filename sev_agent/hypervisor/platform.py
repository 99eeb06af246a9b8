"""The SEV platform as the kernel shows it: module parameters, the misc cgroup's counters, and the device node."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

_PARAMETERS = Path("sys/module/kvm_amd/parameters")
_MISC = (Path("sys/fs/cgroup"), Path("sys/fs/cgroup/misc"))
"""The root of cgroup v2, and where v1 is mounted."""

_SMT = Path("sys/devices/system/cpu/smt/active")
_ONLINE = Path("sys/devices/system/cpu/online")
_FIRST_SOCKET = Path("sys/devices/system/cpu/cpu0/topology/core_siblings_list")
"""The processors of the first one's socket, written as those of the whole host in ``online``."""

_KVM_NODE, _SEV_NODE = Path("dev/kvm"), Path("dev/sev")

_SIMULATED = Path("SIMULATED")
_TRUE = frozenset({"1", "Y", "y"})
"""The kernel writes ``Y`` for a parameter of type bool, ``1`` for the older int."""

_MAX_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """One reading of the kernel.

    ``misc_capacity`` and ``misc_current`` are ASIDs by the kernel's keys: ``sev`` for SEV, ``sev_es`` for SEV-ES and
    SEV-SNP. A kernel without the controller has neither; before 6.5 the root shows no current use.
    ``smt`` is whether two threads share a core, ``one_socket`` whether all cores are in one processor; both ``None``
    where the kernel does not say. ``sev_device`` is whether ``/dev/sev`` is there, ``None`` where this process is shown
    no devices of KVM at all.
    ``simulated`` is true below the root of a simulated platform. Two readings are equal where the platform can do the
    same: what is in use does not count.
    """

    sev: bool
    sev_es: bool
    sev_snp: bool
    misc_capacity: Mapping[str, int]
    misc_current: Mapping[str, int] = field(compare=False)
    simulated: bool
    smt: bool | None = None
    one_socket: bool | None = None
    sev_device: bool | None = None


def read_platform(root: Path) -> Platform:
    """Read the files below ``root``. Blocks shortly; what is absent or unreadable is as if the kernel lacked it."""
    return Platform(
        sev=_is_on(root, "sev"),
        sev_es=_is_on(root, "sev_es"),
        sev_snp=_is_on(root, "sev_snp"),
        misc_capacity=_counters(root, "misc.capacity"),
        misc_current=_counters(root, "misc.current"),
        simulated=(root / _SIMULATED).exists(),
        smt={"1": True, "0": False}.get(_text(root / _SMT).strip()),
        one_socket=_is_one_socket(root),
        sev_device=_has_device(root),
    )


def _is_on(root: Path, parameter: str) -> bool:
    return _text(root / _PARAMETERS / parameter).strip() in _TRUE


def _is_one_socket(root: Path) -> bool | None:
    first, every = _text(root / _FIRST_SOCKET).strip(), _text(root / _ONLINE).strip()
    return first == every if first and every else None


def _has_device(root: Path) -> bool | None:
    if _exists(root / _SEV_NODE):
        return True
    return False if _exists(root / _KVM_NODE) else None


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        return False


def _counters(root: Path, name: str) -> Mapping[str, int]:
    """Lines of ``key number``, as in the kernel's Documentation/admin-guide/cgroup-v2.rst, section Misc."""
    text = next(filter(None, (_text(root / directory / name) for directory in _MISC)), "")
    pairs = (line.split() for line in text.splitlines())
    return MappingProxyType(
        {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and re.fullmatch("[0-9]{1,18}", pair[1])}
    )


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_BYTES).decode(errors="replace")
    except OSError:
        return ""
