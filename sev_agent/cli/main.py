"""The command ``sev-agent``: its groups, each loaded only when it is used."""

import importlib
from typing import Any, ClassVar, Final

import typer
from typer.core import TyperGroup

from sev_agent import __version__

_COMMANDS: Final = {
    "run": "sev_agent.cli.run",
    "scheduler": "sev_agent.cli.scheduler",
    "hosts": "sev_agent.cli.hosts",
    "instance": "sev_agent.cli.instance",
    "reconcile": "sev_agent.cli.reconcile",
    "check": "sev_agent.cli.check",
    "firmware": "sev_agent.cli.firmware",
    "prepare": "sev_agent.cli.prepare",
    "api": "sev_agent.cli.api",
    "db": "sev_agent.cli.db",
    "validate": "sev_agent.cli.validate",
    "image": "sev_agent.cli.image",
    "flavor": "sev_agent.cli.flavor",
    "lab": "sev_agent.cli.lab",
    "demo": "sev_agent.cli.demo",
}
"""A name's module; its ``app`` is the group, or the command where it has only one."""


_STATUSES: Final = (
    "Exit status: 0 done, 1 failed, 2 wrong usage, 4 what is named does not exist, 5 a service cannot be reached,"
    " 78 the configuration cannot be used."
)


class _LazyGroup(TyperGroup):
    """Imports a command when it is named: the daemon must not carry the lab and its tables in memory."""

    names: ClassVar = tuple(_COMMANDS)

    def list_commands(self, ctx: Any) -> list[str]:
        del ctx
        return list(self.names)

    def get_command(self, ctx: Any, cmd_name: str) -> Any | None:
        del ctx
        if cmd_name not in _COMMANDS:
            return None
        command = typer.main.get_command(importlib.import_module(_COMMANDS[cmd_name]).app)
        command.name = cmd_name
        _reflow(command)
        return command


def _reflow(command: Any) -> None:
    """Let a terminal's width break the help's lines, not the docstring's, at ``command`` and all below it.

    What ends a command otherwise than usual is in its own help.
    """
    if command.help:
        command.help = "\n\n".join(" ".join(part.split()) for part in command.help.split("\n\n"))
    below = getattr(command, "commands", {})
    if not below and "Exit status:" not in (command.help or ""):
        command.epilog = _STATUSES
    for each in below.values():
        _reflow(each)


app = typer.Typer(cls=_LazyGroup, no_args_is_help=True, pretty_exceptions_enable=False)


def _show_version(asked: Any) -> None:
    if asked:
        typer.echo(f"sev-agent {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(False, "--version", callback=_show_version, is_eager=True, help="Show the version."),
) -> None:
    """Memory-encrypted virtual machines on OpenStack: the host daemon, its commands and a lab."""


def main() -> None:
    """Entry point of the console script."""
    app()
