"""How much was tried: printed at the end of the run, so that a suite that shrinks is seen."""

from dataclasses import dataclass, field

import pytest


@dataclass(slots=True)
class Tally:
    """What was done in this run: names of crash points reached, descriptions of faults; checks that held.

    ``idle`` are steps of the random walk that found nothing to do; ``returns`` seconds from a service's return until
    all was done that had waited for it.
    """

    seed: int
    crash_points: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    operations: int = 0
    idle: int = 0
    messages: int = 0
    calls: int = 0
    returns: list[float] = field(default_factory=list)
    invariants: int = 0

    def line(self) -> str:
        return (
            f"{len(self.crash_points)} crash runs at {len(set(self.crash_points))} points, {len(self.faults)} fault"
            f" runs of {len(set(self.faults))} kinds, {self.operations} random operations (and {self.idle} that found"
            f" nothing to do), {self.messages} strange messages ({self.calls} of them calls); invariants held"
            f" {self.invariants} times"
        )

    def delays(self) -> str:
        """How soon the daemon had caught up with what came back: a busy machine delays it, so a limit would lie."""
        took = sorted(self.returns) or [0.0]
        median = took[len(took) // 2]
        return f"caught up {len(self.returns)} times, after {median:.1f} s at the median and {took[-1]:.1f} s at most"


TALLY = pytest.StashKey[Tally]()
