"""A check of one property of a host, and what it finds."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from sev_agent.host.evidence import Evidence
from sev_agent.host.layer import Layer
from sev_agent.sev.generation import Generation

ALL = frozenset(Generation)
ES_AND_SNP = frozenset({Generation.SEV_ES, Generation.SEV_SNP})
SNP = frozenset({Generation.SEV_SNP})
NEEDED_FOR: Final = {Generation.SEV: ALL, Generation.SEV_ES: ES_AND_SNP, Generation.SEV_SNP: SNP}
"""The generations that hang on the kernel's support of one: each needs what came before it."""
ADVICE: frozenset[Generation] = frozenset()
"""For checks whose failure keeps no guest from running."""


class Outcome(StrEnum):
    """``UNKNOWN`` is what cannot be read here; ``SKIPPED`` is what was not asked, or hangs on a failed check."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one check saw. ``source`` is where it was read, ``remedy`` what to do where it failed or is unknown."""

    outcome: Outcome
    expected: str
    found: str
    source: str
    remedy: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One question to a host.

    ``generations`` are those that cannot work where it fails. It is skipped where one of ``needs`` (names of checks)
    failed or was skipped. A ``decisive`` one proves a generation by its effect: without it nothing is proven.
    """

    name: str
    title: str
    layer: Layer
    look: Callable[[Evidence], Finding]
    generations: frozenset[Generation] = ALL
    needs: tuple[str, ...] = ()
    decisive: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A check's finding on one host."""

    check: Check
    finding: Finding

    @property
    def outcome(self) -> Outcome:
        return self.finding.outcome

    @property
    def is_advice(self) -> bool:
        """Whether it failed without keeping any generation from working."""
        return self.outcome is Outcome.FAILED and not self.check.generations

    def as_dict(self) -> dict[str, Any]:
        return {
            "name": self.check.name,
            "title": self.check.title,
            "layer": self.check.layer.value,
            "generations": [generation.value for generation in Generation if generation in self.check.generations],
            "outcome": self.outcome.value,
            "expected": self.finding.expected,
            "found": self.finding.found,
            "source": self.finding.source,
            "remedy": self.finding.remedy,
        }


def judged(*, passed: bool, expected: str, found: str, source: str, remedy: str) -> Finding:
    """A finding that passed or failed; the remedy is kept only where it is needed."""
    return Finding(
        outcome=Outcome.PASSED if passed else Outcome.FAILED,
        expected=expected,
        found=found,
        source=source,
        remedy="" if passed else remedy,
    )


def unknown(*, expected: str, found: str, source: str, remedy: str) -> Finding:
    return Finding(outcome=Outcome.UNKNOWN, expected=expected, found=found, source=source, remedy=remedy)


def skipped(*, expected: str, found: str, source: str = "", remedy: str = "") -> Finding:
    return Finding(outcome=Outcome.SKIPPED, expected=expected, found=found, source=source, remedy=remedy)
