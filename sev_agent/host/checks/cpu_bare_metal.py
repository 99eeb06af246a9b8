"""The host is the machine itself: SEV does not nest."""

from sev_agent.host import cpuinfo
from sev_agent.host.check import Check, Finding, judged
from sev_agent.host.checks import cpu_vendor
from sev_agent.host.evidence import Evidence
from sev_agent.host.layer import Layer

NAME = "cpu.bare_metal"


def look(evidence: Evidence) -> Finding:
    is_guest = "hypervisor" in cpuinfo.read(evidence.files).flags
    return judged(
        passed=not is_guest,
        expected="no flag hypervisor",
        found="flag hypervisor: this is a virtual machine" if is_guest else "no flag hypervisor",
        source=evidence.files.where(cpuinfo.PATH),
        remedy="run on the physical host: a virtual machine has no secure processor, and SEV guests cannot be nested",
    )


CHECKS = (Check(name=NAME, title="Not a virtual machine", layer=Layer.CPU, look=look, needs=(cpu_vendor.NAME,)),)
