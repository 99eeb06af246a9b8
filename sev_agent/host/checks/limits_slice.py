"""The slice of all guests has no memory limit below the host's RAM."""

from sev_agent.host.check import ADVICE, Check, Finding, judged, skipped
from sev_agent.host.evidence import Evidence
from sev_agent.host.layer import Layer

_LIMIT = "sys/fs/cgroup/machine.slice/memory.max"


def look(evidence: Evidence) -> Finding:
    expected = "no memory limit of machine.slice"
    text = evidence.files.text_or_none(_LIMIT)
    if text is None:
        return skipped(expected=expected, found="no guest has run since the host started, or there is no cgroup v2")
    return judged(
        passed=text.strip() == "max",
        expected=expected,
        found=f"memory.max {text.strip()}",
        source=evidence.files.where(_LIMIT),
        remedy="pinned memory counts against it: sev-agent prepare --apply sets MemoryMax=infinity for machine.slice",
    )


CHECKS = (Check(name="limits.slice", title="Slice of the guests", layer=Layer.LIMITS, look=look, generations=ADVICE),)
