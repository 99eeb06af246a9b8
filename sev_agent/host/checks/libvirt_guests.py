"""libvirt counts as many guests as the processor has ASIDs for.

It reads CPUID once and keeps the numbers in its cache, where it does not notice a bound that the BIOS has set anew. The
smaller number rules what the host offers.
"""

from sev_agent.host import registers
from sev_agent.host.answers import LibvirtAnswer
from sev_agent.host.check import ADVICE, Check, Finding, judged, skipped, unknown
from sev_agent.host.checks import libvirt_sev
from sev_agent.host.evidence import Evidence
from sev_agent.host.layer import Layer
from sev_agent.hypervisor.platform import read_platform


def look(evidence: Evidence) -> Finding:
    expected = "as many SEV and SEV-ES guests as CPUID has numbers for"
    if not isinstance(evidence.libvirt, LibvirtAnswer):
        return skipped(expected=expected, found="libvirt did not answer")
    if read_platform(evidence.files.root).simulated:
        return skipped(expected=expected, found="the platform is simulated, and libvirt asks the real processor")
    source = f"{evidence.libvirt.source}; {evidence.files.where(registers.CPUID)}"
    try:
        leaf = registers.memory_encryption(evidence.files)
    except FileNotFoundError:
        leaf = None
    if leaf is None:
        remedy = "modprobe cpuid, then run this again"
        return unknown(expected=expected, found="the register cannot be read", source=source, remedy=remedy)
    answer = evidence.libvirt.capabilities
    counted = [(answer.sev_max_guests, leaf.sev_slots)]
    # The first generation names no lower bound, from which libvirt makes numbers that mean nothing.
    counted = [*counted, (answer.sev_es_max_guests, leaf.es_slots)] if leaf.first_sev_asid else []
    return judged(
        passed=all(libvirts is None or libvirts == processors for libvirts, processors in counted),
        expected=expected,
        found=f"libvirt: {answer.sev_max_guests} SEV, {answer.sev_es_max_guests} SEV-ES; "
        f"CPUID: {leaf.sev_slots} SEV, {leaf.es_slots} SEV-ES",
        source=source,
        remedy=libvirt_sev.CACHE,
    )


CHECKS = (
    Check(
        name="libvirt.guests",
        title="libvirt's number of guests",
        layer=Layer.LIBVIRT,
        look=look,
        generations=ADVICE,
        needs=(libvirt_sev.SEV,),
    ),
)
