"""There is RAM for the slots. Encrypted guests are pinned: what is not there cannot be lent."""

import re

from sev_agent.host.check import ADVICE, Check, Finding, judged, skipped
from sev_agent.host.evidence import Evidence
from sev_agent.host.layer import Layer
from sev_agent.hypervisor.platform import read_platform

_MEMINFO = "proc/meminfo"
_LEAST_GUEST_MB = 640
"""MiB: 512 for a small guest, and 128 for QEMU beside it."""


def look(evidence: Evidence) -> Finding:
    expected = f"RAM for as many guests of {_LEAST_GUEST_MB} MiB as there are slots"
    slots = sum(count for count in read_platform(evidence.files.root).misc_capacity.values() if count < 1 << 16)
    total = re.search(r"^MemTotal:\s+(\d{1,15}) kB", evidence.files.text(_MEMINFO), re.MULTILINE)
    if not slots or total is None:
        return skipped(expected=expected, found="the kernel counts no slots" if total else "no MemTotal")
    memory_mb = int(total[1]) // 1024
    return judged(
        passed=memory_mb // _LEAST_GUEST_MB >= slots,
        expected=expected,
        found=f"{memory_mb} MiB for {slots} slots",
        source=f"{evidence.files.where(_MEMINFO)}, {evidence.files.where('sys/fs/cgroup/misc.capacity')}",
        remedy="RAM is used up before the slots: add RAM, or set encryption.limit to what fits",
    )


CHECKS = (Check(name="limits.memory", title="RAM for the slots", layer=Layer.LIMITS, look=look, generations=ADVICE),)
