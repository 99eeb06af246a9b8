"""Every metric that a daemon offers, as the calls that make them say: nobody has to run a daemon to know."""

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "sev_agent"

_SERIES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "Counter": {"_total": ()},
    "Gauge": {"": ()},
    "observe": {"": ()},
    "Histogram": {"_bucket": ("le",), "_count": (), "_sum": ()},
}
"""What Prometheus has of each kind: the ends of the names, each with the labels that come on top."""


@dataclass(frozen=True, slots=True)
class Exported:
    """A metric under the name that it is documented by, and the labels of each of its series by their names."""

    name: str
    series: Mapping[str, frozenset[str]]


def exported() -> list[Exported]:
    return [metric for path in sorted(PACKAGE.rglob("*.py")) for metric in _of(ast.parse(path.read_text()))]


def series() -> dict[str, frozenset[str]]:
    """The labels of every series of every daemon."""
    found: dict[str, frozenset[str]] = {}
    for metric in exported():
        for name, labels in metric.series.items():
            assert found.setdefault(name, labels) == labels, f"{name} has other labels elsewhere"
    return found


def _of(module: ast.Module) -> Iterator[Exported]:
    for call in ast.walk(module):
        match call:
            case ast.Call(func=ast.Name(kind) | ast.Attribute(attr=kind), args=[ast.Constant(str(name)), _, *rest]):
                if kind in _SERIES and name.startswith("sev_"):
                    labels = frozenset(ast.literal_eval(rest[0])) if rest else frozenset()
                    ends = _SERIES[kind]
                    documented = f"{name}_total" if kind == "Counter" else name
                    yield Exported(documented, {name + end: labels | {*more} for end, more in ends.items()})
