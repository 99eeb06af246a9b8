"""The kernel counts slots: the misc cgroup's capacity and current use of each pool."""

from functools import partial

from sev_agent.host.check import ES_AND_SNP, Check, Finding, judged, unknown
from sev_agent.host.checks import kernel_options, module_parameters
from sev_agent.host.evidence import Evidence
from sev_agent.host.layer import Layer
from sev_agent.hypervisor.platform import read_platform
from sev_agent.sev.generation import Generation

_POOLS = {Generation.SEV: "sev", Generation.SEV_ES: "sev_es"}
_BEYOND_ANY_PROCESSOR = 1 << 16
"""The kernel counts 2**32 - 1 slots of SEV-ES where the processor names no lower bound."""


def look(pool: Generation, evidence: Evidence) -> Finding:
    key = _POOLS[pool]
    source = evidence.files.where("sys/fs/cgroup/misc.capacity")
    platform = read_platform(evidence.files.root)
    capacity, current = platform.misc_capacity.get(key), platform.misc_current.get(key)
    expected = f"a capacity of '{key}' above 0"
    if capacity is None:
        return unknown(
            expected=expected,
            found=f"no key '{key}'",
            source=source,
            remedy="mount the misc cgroup; without it slots are counted by libvirt's numbers and the configuration",
        )
    use = "" if current is None else f", {current} in use"
    return judged(
        passed=0 < capacity < _BEYOND_ANY_PROCESSOR,
        expected=expected,
        found=f"{capacity}{use}",
        source=source,
        remedy="the kernel has no slot for such guests: see the checks of ASIDs",
    )


CHECKS = tuple(
    Check(
        name=f"limits.slots_{_POOLS[pool]}",
        title=f"Slots for {title}",
        layer=Layer.LIMITS,
        look=partial(look, pool),
        generations=generations,
        needs=(kernel_options.name("CONFIG_CGROUP_MISC"), module_parameters.name(pool)),
    )
    for pool, title, generations in (
        (Generation.SEV, "SEV guests", frozenset({Generation.SEV})),
        (Generation.SEV_ES, "SEV-ES and SEV-SNP guests", ES_AND_SNP),
    )
)
