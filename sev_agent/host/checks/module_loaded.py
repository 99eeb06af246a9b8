"""The module kvm_amd is loaded."""

from sev_agent.host import kvm_amd
from sev_agent.host.check import Check, Finding, judged
from sev_agent.host.checks import bios_svm, kernel_options
from sev_agent.host.evidence import Evidence
from sev_agent.host.layer import Layer

NAME = "module.loaded"


def look(evidence: Evidence) -> Finding:
    loaded = evidence.files.exists(kvm_amd.MODULE)
    return judged(
        passed=loaded,
        expected="module kvm_amd",
        found="loaded" if loaded else "not loaded",
        source=evidence.files.where(kvm_amd.MODULE),
        remedy="modprobe kvm_amd, and see why it was not loaded at boot: a blacklist below /etc/modprobe.d?",
    )


CHECKS = (
    Check(
        name=NAME,
        title="kvm_amd loaded",
        layer=Layer.KERNEL_MODULE,
        look=look,
        needs=(bios_svm.NAME, kernel_options.name("CONFIG_KVM_AMD")),
    ),
)
