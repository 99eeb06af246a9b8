"""Everything that makes a host ready: what software can change, what the reboot is for, and what a person must do."""

from dataclasses import dataclass
from typing import Any

from sev_agent.host import boot_line, kvm_amd
from sev_agent.host.answers import NotAsked
from sev_agent.host.check import Outcome, Result
from sev_agent.host.evidence import Evidence
from sev_agent.host.examination import Report, examine
from sev_agent.host.layer import Layer
from sev_agent.host.preparation.arguments import PreparationRefused, missing, parameters, words
from sev_agent.host.preparation.boot_loader import boot_line_changes
from sev_agent.host.preparation.change import Changes
from sev_agent.host.preparation.drop_ins import memory_limits, module_options
from sev_agent.hypervisor.host_files import HostFiles
from sev_agent.sev.generation import Generation

_NOT_FOR_SOFTWARE = frozenset({Layer.CPU, Layer.BIOS, Layer.KERNEL_BUILD})
"""In the CPU's layer it is what cannot be looked at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """``reboot`` are the reasons why a reboot is needed; ``by_hand`` is what no command can set."""

    generation: Generation
    changes: Changes
    reboot: tuple[str, ...]
    by_hand: tuple[Result, ...]

    def as_dict(self) -> dict[str, Any]:
        return {
            "generation": self.generation.value,
            "files": [{"path": f"/{change.path}", "diff": change.diff()} for change in self.changes.files],
            "commands": [command.as_dict() for command in self.changes.commands],
            "reboot": list(self.reboot),
            "by_hand": [result.as_dict() for result in self.by_hand],
        }


def make_plan(files: HostFiles, generation: Generation) -> Plan:
    """What to change for ``generation``. Changes nothing; blocks on the disk.

    Raises ``PreparationRefused`` for a host that is not understood, or that says the opposite on purpose, and
    ``OSError`` where files cannot be read.
    """
    unasked = NotAsked(reason="what it says hangs on what is changed here")
    report = examine(Evidence(files=files, libvirt=unasked, placement=unasked, rabbitmq=unasked))
    _refuse_hopeless(report, generation)
    changes = boot_line_changes(files, generation) + module_options(files, generation) + memory_limits(files)
    return Plan(
        generation=generation,
        changes=changes,
        reboot=_reasons(files, generation),
        by_hand=tuple(result for result in report.results if _is_for_a_person(result, generation)),
    )


def _refuse_hopeless(report: Report, generation: Generation) -> None:
    mend = report.verdicts[generation].mend
    if mend is not None and mend.outcome is Outcome.FAILED and mend.check.layer is Layer.CPU:
        raise PreparationRefused(
            f"no setting makes this host ready for {generation.value}: {mend.finding.found}", remedy=mend.finding.remedy
        )


def _is_for_a_person(result: Result, generation: Generation) -> bool:
    return (
        result.outcome in {Outcome.FAILED, Outcome.UNKNOWN}
        and result.check.layer in _NOT_FOR_SOFTWARE
        and generation in result.check.generations
    )


def _reasons(files: HostFiles, generation: Generation) -> tuple[str, ...]:
    reasons = []
    if not files.exists(boot_line.IN_EFFECT):
        return ("the system below this root does not run: it starts with what is written now",)
    if absent := missing(boot_line.in_effect(files), words(generation, files)):
        reasons.append(f"the kernel reads its boot line only when it starts, and this one has no {' '.join(absent)}")
    for name, value in parameters(generation, files).items():
        present = kvm_amd.parameter(files, name)
        if present is not None and kvm_amd.is_on(present) is not (value == "1"):
            reasons.append(f"kvm_amd takes {name}={value} only when it is loaded, and has {present} now")
    return tuple(reasons)
