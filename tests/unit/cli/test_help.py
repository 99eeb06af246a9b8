"""What every command says of itself."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.core import TyperGroup
from typer.testing import CliRunner

from sev_agent.cli.main import app

_NO_CONTEXT: Any = None


def commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    if not isinstance(command, TyperGroup):
        yield path, command
        return
    for name in command.list_commands(_NO_CONTEXT):
        yield from commands(command.get_command(_NO_CONTEXT, name), (*path, name))


COMMANDS = dict(commands(typer.main.get_command(app)))


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
class TestCommand:
    def test_explains_itself(self, path: tuple[str, ...]) -> None:
        """A sentence of purpose, a word on every option and argument, and the exit statuses."""
        shown = CliRunner().invoke(app, [*path, "--help"], env={"COLUMNS": "200", "TERM": "dumb"}).stdout
        assert COMMANDS[path].help.split("\n")[0].endswith(".")
        assert all(each.help for each in COMMANDS[path].params)
        assert "Exit status" in shown

    def test_no_default_is_lost(self, path: tuple[str, ...]) -> None:
        """Nothing in a help's text is taken for markup, which would vanish: a default in words least of all."""
        assert not [each.name for each in COMMANDS[path].params if "[" in each.help]


CONFIGURED = [path for path, command in COMMANDS.items() if any("--config" in each.opts for each in command.params)]


@pytest.mark.parametrize("path", CONFIGURED, ids=" ".join)
def test_unusable_configuration(path: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that cannot be used, be it that this user may not read it, is exit status 78, and never wrong usage."""
    file = tmp_path / "broken.toml"
    file.write_text("broken")
    # Whoever runs the tests as root may read everything.
    monkeypatch.setattr(os, "access", lambda path, *_, **__: Path(path) != file)
    needed = ("--flavor", "f", "--image", "i") if path == ("validate",) else ()
    result = CliRunner().invoke(app, [*path, "--config", str(file), *needed])
    assert result.exit_code == 78
    assert result.stderr.startswith(f"sev-agent: {file} is not TOML")
