"""libvirt offers encrypted guests, as the kernel does.

libvirt keeps what it learnt of QEMU in a cache, also that SEV was off. It notices a change of the kernel or of QEMU,
but not one of the BIOS, nor a module that was loaded late.
"""

from sev_agent.host.answers import LibvirtAnswer
from sev_agent.host.check import SNP, Check, Finding, judged, skipped
from sev_agent.host.checks import device_nodes, libvirt_answers, module_parameters, qemu_version
from sev_agent.host.evidence import Evidence
from sev_agent.host.layer import Layer
from sev_agent.sev.generation import Generation

SEV = "libvirt.sev"
SEV_SNP = "libvirt.sev_snp"

CACHE = (
    "libvirt's cache is stale: rm -f /var/cache/libvirt/qemu/capabilities/*.xml, then restart libvirtd or virtqemud "
    "(guests go on); if it stays so, QEMU was built without SEV"
)


def look_at_sev(evidence: Evidence) -> Finding:
    expected = "<sev supported='yes'>, as kvm_amd has it on"
    if not isinstance(evidence.libvirt, LibvirtAnswer):
        return skipped(expected=expected, found="libvirt did not answer")
    answer = evidence.libvirt.capabilities
    return judged(
        passed=answer.sev,
        expected=expected,
        found=f"yes: {_guests(answer.sev_max_guests)} SEV, {_guests(answer.sev_es_max_guests)} SEV-ES guests"
        if answer.sev
        else "<sev supported='no'>, which contradicts the kernel",
        source=evidence.libvirt.source,
        remedy=CACHE,
    )


def look_at_snp(evidence: Evidence) -> Finding:
    expected = "sectype sev-snp in <launchSecurity>"
    if not isinstance(evidence.libvirt, LibvirtAnswer):
        return skipped(expected=expected, found="libvirt did not answer")
    sectypes = evidence.libvirt.capabilities.sectypes
    return judged(
        passed="sev-snp" in sectypes,
        expected=expected,
        found=f"sectypes {', '.join(sorted(sectypes)) or 'none'}",
        source=evidence.libvirt.source,
        remedy=CACHE,
    )


def _guests(count: int | None) -> str:
    return "an unknown number of" if count is None else f"{count}"


CHECKS = (
    Check(
        name=SEV,
        title="libvirt offers SEV",
        layer=Layer.LIBVIRT,
        look=look_at_sev,
        needs=(libvirt_answers.REACHABLE, module_parameters.name(Generation.SEV), device_nodes.SEV),
        decisive=True,
    ),
    Check(
        name=SEV_SNP,
        title="libvirt offers SEV-SNP",
        layer=Layer.LIBVIRT,
        look=look_at_snp,
        generations=SNP,
        needs=(
            SEV,
            libvirt_answers.SNP_VERSION,
            qemu_version.name(Generation.SEV_SNP),
            module_parameters.name(Generation.SEV_SNP),
        ),
        decisive=True,
    ),
)
