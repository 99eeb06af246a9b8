"""The alert rules and the dashboard in ``conf`` ask for what the daemons offer, in Prometheus's own language."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import promql_parser as promql
import pytest

from tests.exported_metrics import series

CONF = Path(__file__).parents[2] / "conf"
OF_PROMETHEUS = frozenset({"instance", "job"})
"""The labels that it gives every series: where it was read."""

SERIES = series()
ALERTS = CONF / "alerts.yml"
DASHBOARD: Any = json.loads((CONF / "dashboards" / "sev-agent.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


class Question(NamedTuple):
    """What is asked, and the text that names labels of the answer."""

    where: str
    expression: str
    text: str


def alerts() -> Iterator[Question]:
    rule = re.compile(r"- alert: (\w+)\n +expr: (.+)\n(?: +for: \w+\n)? +annotations:\n +summary: (.+)\n")
    for name, expression, text in rule.findall(ALERTS.read_text()):
        yield Question(name, expression, text)


def panels() -> Iterator[Question]:
    for panel in PANELS:
        for target in panel["targets"]:
            yield Question(panel["title"], target["expr"].replace("$__rate_interval", "5m"), target["legendFormat"])


QUESTIONS = [*alerts(), *panels()]


def labels(expression: promql.Expr) -> frozenset[str]:
    """The labels that the answer can have. Raises ``KeyError`` for a series that nobody offers."""
    match expression:
        case promql.VectorSelector():
            found = _selected(expression)
        case promql.MatrixSelector():
            found = _selected(expression.vector_selector)
        case promql.AggregateExpr():
            found = _aggregated(expression)
        case promql.Call():
            found = _called(expression)
        case promql.BinaryExpr():
            found = labels(expression.lhs) | labels(expression.rhs)
        case promql.ParenExpr():
            found = labels(expression.expr)
        case promql.NumberLiteral():
            found = frozenset()
        case _:
            raise AssertionError(f"no rule for {type(expression)}")
    return found


def _selected(selector: promql.VectorSelector) -> frozenset[str]:
    known = SERIES[selector.name or ""] | OF_PROMETHEUS
    asked = {matcher.name for matcher in selector.matchers.matchers} - {"__name__"}
    assert asked <= known, f"{selector.name} has no {asked - known}"
    return known


def _called(call: promql.Call) -> frozenset[str]:
    inner = frozenset[str]().union(*map(labels, call.args))
    if call.func.name != "histogram_quantile":
        return inner
    assert "le" in inner, "a quantile is worked out from buckets"
    return inner - {"le"}


def _aggregated(expression: promql.AggregateExpr) -> frozenset[str]:
    inner = labels(expression.expr)
    if expression.modifier is None:
        return frozenset()
    assert expression.modifier.type == promql.AggModifierType.By
    kept = frozenset(expression.modifier.labels)
    assert kept <= inner, f"nothing has {kept - inner}"
    return kept


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: question.where)
def test_asks_for_what_is_offered(question: Question) -> None:
    """Every series and label that is asked for is offered, and a text names only labels that the answer has."""
    answered = labels(promql.parse(question.expression))
    named = set(re.findall(r"\{\{ *(?:\$labels\.)?(\w+) *\}\}", question.text))
    assert named <= answered


def test_every_rule_was_read() -> None:
    """No rule escapes the tests by being written in another way."""
    assert len(list(alerts())) == ALERTS.read_text().count("alert:") > 0


def test_every_metric_is_shown() -> None:
    """The dashboard shows each metric that the daemons offer."""
    shown = {name for each in panels() for name in re.findall(r"sev_[a-z_]+", each.expression)}
    ends = re.compile("_(bucket|count|sum)$")
    assert {ends.sub("", name) for name in SERIES} == {ends.sub("", name) for name in shown}


def test_dashboard_can_be_imported() -> None:
    """Any Grafana since 10 takes it: the data source is chosen on import, and panels neither clash nor overlap."""
    assert DASHBOARD["schemaVersion"] == 39
    assert DASHBOARD["id"] is None
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    sources = [each["datasource"] for panel in PANELS for each in (panel, *panel["targets"])]
    assert {source["uid"] for source in sources} == {"${datasource}"}
    assert {*re.findall(r"\$([a-z]\w*)", "".join(each.expression for each in panels()))} <= variables.keys()
    taken = [
        (column, line)
        for position in (panel["gridPos"] for panel in DASHBOARD["panels"])
        for column in range(position["x"], position["x"] + position["w"])
        for line in range(position["y"], position["y"] + position["h"])
    ]
    assert len(taken) == len(set(taken))
    assert max(column for column, _ in taken) < 24
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    assert all(panel["description"] for panel in PANELS)
