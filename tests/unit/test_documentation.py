"""What the pages for operators name is there, and what is there to be measured is named."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.core import TyperGroup

from sev_agent.cli.main import app
from tests.exported_metrics import exported

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
COMMAND: Any = typer.main.get_command(app)

_NO_CONTEXT: Any = None


def code(page: Path) -> Iterator[str]:
    """What a page shows as code: each line of a block, and each quotation in its text. Comments are left out."""
    for line in page.read_text().splitlines():
        quoted = [line.strip()] if line.startswith("    ") else re.findall(r"`([^`]+)`", line)
        yield from (text.split("  #")[0] for text in quoted)


def invocations(page: Path) -> Iterator[list[str]]:
    """The words behind each ``sev-agent`` on a page."""
    for text in code(page):
        for match in re.finditer(r"(?:^|/)sev-agent( [^|;&]+)", text):
            yield re.sub(r"[\[\]|]", " ", match[1]).split()


def resolved(words: list[str]) -> tuple[Any, list[str]]:
    """The command that ``words`` name, and what they hand it. Raises ``KeyError`` where there is none."""
    command, rest = COMMAND, words
    while isinstance(command, TyperGroup) and rest and not rest[0].startswith("-"):
        found = command.get_command(_NO_CONTEXT, rest[0])
        if found is None:
            raise KeyError(rest[0])
        command, rest = found, rest[1:]
    return command, rest


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
class TestPage:
    def test_commands_exist(self, page: Path) -> None:
        """Every command of ours that a page names is there, with every option that it is given."""
        for words in invocations(page):
            command, rest = resolved(words)
            known = {"--help", "--version"}.union(*((*each.opts, *each.secondary_opts) for each in command.params))
            assert {word for word in rest if re.match(r"--[a-z]", word)} <= known, " ".join(words)

    def test_files_exist(self, page: Path) -> None:
        """Every configuration and unit that a page has somebody install is there."""
        for text in code(page):
            for name in re.findall(r"(?:^| )((?:conf|systemd)/[a-z./-]+)", text):
                assert (ROOT / name).exists(), name

    def test_links_lead_somewhere(self, page: Path) -> None:
        """Every file that a page links to is there."""
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert target.startswith("https://") or (page.parent / target).exists(), target


def test_metrics_are_documented() -> None:
    """The page for operators tells of every metric, and of no other."""
    page = (ROOT / "docs" / "production.md").read_text()
    assert set(re.findall(r"`(sev_(?:agent|api)_[a-z_]+)`", page)) == {metric.name for metric in exported()}
