"""All checks of one host, and the verdict for each generation."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sev_agent.host.check import Check, Finding, Outcome, Result, judged, skipped, unknown
from sev_agent.host.checks import ALL_CHECKS
from sev_agent.host.evidence import Evidence
from sev_agent.hypervisor.platform import read_platform
from sev_agent.sev.generation import Generation


class Readiness(StrEnum):
    """``NOT_PROVEN`` is a host in which nothing failed, but something that decides could not be looked at."""

    READY = "ready"
    NOT_READY = "not ready"
    NOT_PROVEN = "not proven"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether guests of one generation can run. ``mend`` is the check to mend first; None where it is ready."""

    generation: Generation
    readiness: Readiness
    mend: Result | None

    def as_dict(self) -> dict[str, Any]:
        mend = self.mend
        return {
            "readiness": self.readiness.value,
            "layer": None if mend is None else mend.check.layer.value,
            "check": None if mend is None else mend.check.name,
            "found": None if mend is None else mend.finding.found,
            "remedy": None if mend is None else mend.finding.remedy,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What was found of one host. ``simulated`` is true of a lab's platform."""

    results: tuple[Result, ...]
    verdicts: Mapping[Generation, Verdict]
    simulated: bool

    @property
    def advice(self) -> tuple[Result, ...]:
        """What failed without keeping any guest from running."""
        return tuple(result for result in self.results if result.is_advice)

    def is_ready(self, generation: Generation | None = None) -> bool:
        """Whether ``generation`` can run here; without one, whether any can."""
        wanted = self.verdicts.values() if generation is None else (self.verdicts[generation],)
        return any(verdict.readiness is Readiness.READY for verdict in wanted)

    def first_to_mend(self, generation: Generation | None = None) -> Result | None:
        """The one thing to mend first for ``generation``, without one for plain SEV; None where the host is ready."""
        return None if self.is_ready(generation) else self.verdicts[generation or Generation.SEV].mend


def examine(evidence: Evidence, checks: Iterable[Check] = ALL_CHECKS) -> Report:
    """Make every check, each after those that it needs. Blocks on the files of the host."""
    by_name = {check.name: check for check in checks}
    findings: dict[str, Finding] = {}
    for check in by_name.values():
        _make(check, by_name, findings, evidence)
    results = tuple(
        sorted(
            (Result(check=check, finding=findings[name]) for name, check in by_name.items()),
            key=lambda result: result.check.layer.depth,
        )
    )
    return Report(
        results=results,
        verdicts={generation: _verdict(generation, results) for generation in Generation},
        simulated=read_platform(evidence.files.root).simulated,
    )


def _make(check: Check, by_name: Mapping[str, Check], findings: dict[str, Finding], evidence: Evidence) -> Finding:
    if check.name in findings:
        return findings[check.name]
    obstacle = None
    for name in check.needs:
        needed = _make(by_name[name], by_name, findings, evidence)
        if obstacle is None and needed.outcome in {Outcome.FAILED, Outcome.SKIPPED}:
            obstacle = name, needed
    if obstacle is None:
        finding = _look(check, evidence)
    else:
        name, needed = obstacle
        finding = skipped(expected="", found=f"needs {name}, which {_was(needed.outcome)}", remedy=f"see {name}")
    findings[check.name] = finding
    return finding


def _was(outcome: Outcome) -> str:
    return "failed" if outcome is Outcome.FAILED else "was skipped"


def _look(check: Check, evidence: Evidence) -> Finding:
    """The check itself; what keeps it from reading becomes a finding, not an end of the examination."""
    try:
        return check.look(evidence)
    except PermissionError as error:
        source = str(error.filename or "")
        return unknown(expected="", found="no permission to read it", source=source, remedy="run this as root")
    except FileNotFoundError as error:
        source = str(error.filename or error)
        return unknown(expected="", found="absent", source=source, remedy="look whether /proc and /sys are mounted")
    except OSError as error:
        return judged(
            passed=False,
            expected="",
            found=f"cannot be read: {error}",
            source=str(error.filename or ""),
            remedy="look into dmesg",
        )


def _verdict(generation: Generation, results: Iterable[Result]) -> Verdict:
    by_name = {result.check.name: result for result in results}
    relevant = [result for result in by_name.values() if generation in result.check.generations]
    failed = next((result for result in relevant if result.outcome is Outcome.FAILED), None)
    if failed is not None:
        return Verdict(generation=generation, readiness=Readiness.NOT_READY, mend=_cause(failed, by_name))
    unproven = next((r for r in relevant if r.check.decisive and r.outcome is not Outcome.PASSED), None)
    if unproven is not None:
        return Verdict(generation=generation, readiness=Readiness.NOT_PROVEN, mend=_cause(unproven, by_name))
    return Verdict(generation=generation, readiness=Readiness.READY, mend=None)


def _cause(result: Result, by_name: Mapping[str, Result]) -> Result:
    """What ``result`` hangs on, at the bottom of what it needs.

    Also for one that failed: where something below it could not be looked at, the fault may be there.
    """
    needed = (by_name[name] for name in result.check.needs)
    obstacle = next((need for need in needed if need.outcome is not Outcome.PASSED), None)
    return result if obstacle is None else _cause(obstacle, by_name)
