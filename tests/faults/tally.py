"""How much was tried: printed at the end of the run, so that a suite that shrinks is seen."""

from dataclasses import dataclass, field

import pytest


@dataclass(slots=True)
class Tally:
    """What was done in this run: names of crash points reached, descriptions of faults; checks that held."""

    seed: int
    crash_points: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    operations: int = 0
    messages: int = 0
    invariants: int = 0

    def line(self) -> str:
        return (
            f"{len(self.crash_points)} crash runs at {len(set(self.crash_points))} points, {len(self.faults)} fault"
            f" runs of {len(set(self.faults))} kinds, {self.operations} random operations, {self.messages} strange"
            f" messages; invariants held {self.invariants} times"
        )


TALLY = pytest.StashKey[Tally]()
