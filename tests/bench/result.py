"""One measured figure, beside the least that it could be and what is aimed at."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from rich.table import Table


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A figure in ``unit``; smaller is better.

    ``floor`` is the least that is conceivable: what the parts below cost by themselves, measured in the same run where
    that is not zero. ``goal`` is the most that is aimed at, None for a figure that only helps to read the others.
    ``min``, ``median`` and ``max`` are over ``runs`` samples.
    """

    name: str
    value: float
    unit: str
    floor: float | None
    goal: float | None
    runs: int
    min: float
    median: float
    max: float

    @classmethod
    def of(
        cls,
        name: str,
        samples: Sequence[float],
        unit: str,
        *,
        value: float | None = None,
        floor: float | None = None,
        goal: float | None = None,
    ) -> Self:
        """The median of ``samples``, or ``value`` where that is not what stands for them."""
        median = statistics.median(samples)
        return cls(
            name=name,
            value=median if value is None else value,
            unit=unit,
            floor=floor,
            goal=goal,
            runs=len(samples),
            min=min(samples),
            median=median,
            max=max(samples),
        )

    @property
    def is_met(self) -> bool:
        return self.goal is None or self.value <= self.goal


def write(results: Sequence[Result], path: Path) -> None:
    """Write ``results`` as a list of objects with their field names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([asdict(result) for result in results], indent=2) + "\n")


def table(results: Sequence[Result]) -> Table:
    """The results for a person; what misses its goal is marked by a word, not by colour alone."""
    drawn = Table(box=None, pad_edge=False, header_style="bold")
    drawn.add_column("benchmark", no_wrap=True)
    for column in ("value", "floor", "goal"):
        drawn.add_column(column, justify="right")
    drawn.add_column("")
    for column in ("runs", "min", "median", "max"):
        drawn.add_column(column, justify="right", style="dim")
    for each in results:
        figures = (each.value, each.floor, each.goal)
        spread = (each.min, each.median, each.max)
        drawn.add_row(
            each.name,
            *(_text(figure, each.unit) for figure in figures),
            _mark(each),
            str(each.runs),
            *(_text(figure, "") for figure in spread),
        )
    return drawn


def _mark(result: Result) -> str:
    if result.goal is None:
        return ""
    return "[green]met[/]" if result.is_met else "[bold red]MISSED[/]"


def _text(figure: float | None, unit: str) -> str:
    if figure is None:
        return "-"
    digits = 0 if abs(figure) >= 100 else 1 if abs(figure) >= 10 else 2
    return f"{figure:.{digits}f} {unit}".rstrip()
