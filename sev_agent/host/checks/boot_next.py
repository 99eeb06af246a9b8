"""The next boot will have a boot line as the method asks for it."""

from sev_agent.host import boot_line
from sev_agent.host.check import ADVICE, Check, Finding, judged, skipped
from sev_agent.host.checks import cpu_bare_metal
from sev_agent.host.evidence import Evidence
from sev_agent.host.layer import Layer

_OFF = frozenset({"0", "n", "N", "off"})


def look(evidence: Evidence) -> Finding:
    expected = "mem_encrypt=on, and kvm_amd.sev not off, in every entry"
    entries = boot_line.next_boot(evidence.files)
    if not entries:
        return skipped(expected=expected, found="no boot loader's files are known here")
    faults = [f"{entry.source}: {fault}" for entry in entries if (fault := _fault(entry.line))]
    return judged(
        passed=not faults,
        expected=expected,
        found="; ".join(faults[:3]) or f"{len(entries)} entries have it",
        source=", ".join(dict.fromkeys(entry.source for entry in entries[:3])),
        remedy=_remedy(evidence),
    )


def _fault(line: boot_line.BootLine) -> str:
    if line.value("kvm_amd.sev") in _OFF:
        return f"kvm_amd.sev={line.value('kvm_amd.sev')}"
    value = line.value("mem_encrypt")
    return "" if value == "on" else f"mem_encrypt={value}" if value else "no mem_encrypt=on"


def _remedy(evidence: Evidence) -> str:
    settings = [
        "etc/default/grub",
        *(f"etc/default/grub.d/{name}" for name in evidence.files.names("etc/default/grub.d")),
    ]
    if any("mem_encrypt=on" in (evidence.files.text_or_none(path) or "") for path in settings):
        return (
            "update-grub (or grub2-mkconfig): the settings below /etc/default have it, the boot loader's file has not"
        )
    return "sev-agent prepare --apply"


CHECKS = (
    Check(
        name="boot.next",
        title="Boot line of the next boot",
        layer=Layer.BOOT_LINE,
        look=look,
        generations=ADVICE,
        needs=(cpu_bare_metal.NAME,),
    ),
)
