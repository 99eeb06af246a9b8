"""How the commands show what the rules say: a table, what to do about each refusal, JSON."""

from collections.abc import Sequence
from typing import Any

from sev_agent.cli import output
from sev_agent.sev.verdict import Verdict


def as_json(verdicts: Sequence[Verdict]) -> list[dict[str, Any]]:
    return [
        {
            "rule": verdict.name,
            "on": str(verdict.subject),
            "property": verdict.property_name,
            "expected": verdict.expected,
            "found": verdict.found,
            "ok": verdict.ok,
            "code": verdict.refusal.code if verdict.refusal else None,
            "message": verdict.refusal.message if verdict.refusal else None,
            "remedy": verdict.refusal.remedy if verdict.refusal else None,
        }
        for verdict in verdicts
    ]


def show(verdicts: Sequence[Verdict]) -> None:
    """A line for each rule; below them what failed, with its remedy."""
    table = output.table("", "rule", "on", "property", "expected", "found")
    for verdict in verdicts:
        table.add_row(
            "[green]ok[/]" if verdict.ok else "[red]no[/]",
            output.cell(verdict.name),
            output.cell(verdict.subject),
            output.cell(verdict.property_name),
            output.cell(verdict.expected),
            output.cell(verdict.found) if verdict.ok else f"[red]{output.cell(verdict.found)}[/]",
        )
    screen = output.screen()
    screen.print(table)
    for verdict in verdicts:
        if verdict.refusal is not None:
            screen.print(
                f"\n[red]{output.cell(verdict.refusal.message)}[/]\n  {output.cell(verdict.remedy)}", soft_wrap=True
            )
