"""libvirt answers, and is new enough: 6.9 fills in the SEV element by itself, 10.5 knows SEV-SNP."""

from functools import partial

from sev_agent.host.answers import LibvirtAnswer, NoAnswer, NotAsked
from sev_agent.host.check import ALL, SNP, Check, Finding, judged, skipped
from sev_agent.host.evidence import Evidence
from sev_agent.host.layer import Layer
from sev_agent.host.versions import parse

REACHABLE = "libvirt.reachable"
VERSION = "libvirt.version"
SNP_VERSION = "libvirt.version_sev_snp"


def look(evidence: Evidence) -> Finding:
    expected = "domain capabilities of q35 with KVM"
    match evidence.libvirt:
        case NotAsked(reason=reason):
            return skipped(expected=expected, found=reason)
        case NoAnswer(source=source, fault=fault, remedy=remedy):
            return judged(passed=False, expected=expected, found=fault, source=source, remedy=remedy)
        case LibvirtAnswer(source=source, libvirt_version=version):
            return judged(passed=True, expected=expected, found=f"libvirt {version}", source=source, remedy="")


def look_at_version(least: str, evidence: Evidence) -> Finding:
    expected = f"libvirt {least} or newer"
    match evidence.libvirt:
        case LibvirtAnswer(source=source, libvirt_version=version):
            return judged(
                passed=parse(version) >= parse(least),
                expected=expected,
                found=version,
                source=source,
                remedy=f"install libvirt {least} or newer (Debian 12: from backports)",
            )
        case _:
            return skipped(expected=expected, found="libvirt did not answer")


CHECKS = (
    Check(name=REACHABLE, title="libvirt answers", layer=Layer.LIBVIRT, look=look),
    Check(
        name=VERSION,
        title="libvirt's version",
        layer=Layer.LIBVIRT,
        look=partial(look_at_version, "6.9.0"),
        generations=ALL,
        needs=(REACHABLE,),
    ),
    Check(
        name=SNP_VERSION,
        title="libvirt new enough for amd-sev-snp",
        layer=Layer.LIBVIRT,
        look=partial(look_at_version, "10.5.0"),
        generations=SNP,
        needs=(REACHABLE,),
    ),
)
