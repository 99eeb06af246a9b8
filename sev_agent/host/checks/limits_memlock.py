"""libvirt's daemon may lock its guests' memory: it raises each guest's limit, if it has the right to."""

import re
from dataclasses import dataclass

from sev_agent.host.check import Check, Finding, judged, skipped
from sev_agent.host.evidence import Evidence
from sev_agent.host.layer import Layer
from sev_agent.hypervisor.host_files import HostFiles
from sev_agent.sev.generation import Generation

_DAEMONS = ("virtqemud", "libvirtd")
_CAP_SYS_RESOURCE = 24
_MAX_PROCESSES = 100_000
_LIMIT = re.compile(r"^Max locked memory\s+(\S+)\s+(\S+)", re.MULTILINE)
_CAPABILITIES = re.compile(r"^CapEff:\s+([0-9a-fA-F]{1,16})$", re.MULTILINE)
_SMALLEST_GUEST = 256 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Daemon:
    """libvirt's daemon, as a process."""

    name: str
    pid: str


def look(evidence: Evidence) -> Finding:
    expected = "libvirt's daemon has CAP_SYS_RESOURCE, or an unlimited LimitMEMLOCK"
    daemon = find_daemon(evidence.files)
    if daemon is None:
        return skipped(
            expected=expected, found="libvirt's daemon does not run now", source=evidence.files.where("proc")
        )
    limits = _LIMIT.search(evidence.files.text(f"proc/{daemon.pid}/limits"))
    capabilities = _CAPABILITIES.search(evidence.files.text(f"proc/{daemon.pid}/status"))
    may_raise = capabilities is not None and bool(int(capabilities[1], 16) >> _CAP_SYS_RESOURCE & 1)
    hard = limits[2] if limits else "unknown"
    enough = hard == "unlimited" or (hard.isdecimal() and int(hard) >= _SMALLEST_GUEST)
    right = "with" if may_raise else "without"
    return judged(
        passed=may_raise or enough,
        expected=expected,
        found=f"{daemon.name}: {right} CAP_SYS_RESOURCE, hard limit {hard}",
        source=evidence.files.where(f"proc/{daemon.pid}"),
        remedy="sev-agent prepare --apply sets LimitMEMLOCK=infinity for it; guests start with 'cannot limit locked "
        "memory' otherwise. In a container, give it CAP_SYS_RESOURCE",
    )


def find_daemon(files: HostFiles) -> Daemon | None:
    pids = [name for name in files.names("proc") if name.isdecimal()][:_MAX_PROCESSES]
    for pid in pids:
        try:
            name = files.text(f"proc/{pid}/comm", limit=64).strip()
        except OSError:
            continue  # it ended meanwhile
        if name in _DAEMONS:
            return Daemon(name=name, pid=pid)
    return None


CHECKS = (
    Check(
        name="limits.memlock",
        title="Memory may be locked",
        layer=Layer.LIMITS,
        look=look,
        generations=frozenset({Generation.SEV, Generation.SEV_ES}),
    ),
)
