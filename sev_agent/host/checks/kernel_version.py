"""The kernel is new enough for each generation.

Hosts run SEV guests since Linux 4.16, SEV-ES since 5.11, SEV-SNP since 6.11.
"""

from functools import partial

from sev_agent.host import kernel
from sev_agent.host.check import Check, Finding, judged, unknown
from sev_agent.host.evidence import Evidence
from sev_agent.host.kvm_amd import PARAMETERS
from sev_agent.host.layer import Layer
from sev_agent.sev.generation import Generation

_LEAST = {Generation.SEV: (4, 16), Generation.SEV_ES: (5, 11), Generation.SEV_SNP: (6, 11)}


def name(generation: Generation) -> str:
    return f"kernel.version_{generation.name.lower()}"


def look(generation: Generation, evidence: Evidence) -> Finding:
    major, minor = _LEAST[generation]
    expected = f"Linux {major}.{minor} or newer"
    source = evidence.files.where(kernel.RELEASE)
    release, version = kernel.release(evidence.files), kernel.version(evidence.files)
    remedy = f"install Linux {major}.{minor} or newer (Debian 13 and RHEL 10 have 6.12)"
    if version is None:
        return unknown(expected=expected, found=f"'{release}' has no version", source=source, remedy=remedy)
    # Distributions put newer features into older kernels.
    has_parameter = evidence.files.exists(f"sys/module/kvm_amd/parameters/{PARAMETERS[generation]}")
    is_new = version >= _LEAST[generation]
    return judged(
        passed=is_new or has_parameter,
        expected=expected,
        found=release if is_new or not has_parameter else f"{release}, whose kvm_amd knows it all the same",
        source=source,
        remedy=remedy,
    )


CHECKS = tuple(
    Check(
        name=name(generation),
        title=f"Kernel new enough for {generation.value}",
        layer=Layer.KERNEL_BUILD,
        look=partial(look, generation),
        generations=frozenset({generation}),
    )
    for generation in Generation
)
