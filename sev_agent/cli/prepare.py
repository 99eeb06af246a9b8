"""``sev-agent prepare``: make a host ready, as far as software can."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console

from sev_agent import log
from sev_agent.cli import output
from sev_agent.config import LogSection
from sev_agent.errors import SevAgentError
from sev_agent.host import boot_line
from sev_agent.host.preparation import programs
from sev_agent.host.preparation.arguments import missing, words
from sev_agent.host.preparation.change import Command, FileChange
from sev_agent.host.preparation.ledger import Ledger
from sev_agent.host.preparation.plan import Plan, make_plan
from sev_agent.hypervisor.host_files import HostFiles
from sev_agent.sev.generation import Generation

app = typer.Typer(add_completion=False)

_DIFF_STYLES: Final = {"+": "green", "-": "red", "@": "cyan"}


class NotInEffect(SevAgentError):
    """The boot loader's own program ran, and its result has not what was set."""

    code = "preparation.not_in_effect"


@app.command()
def prepare(
    generation: Annotated[
        Generation, typer.Option("--generation", "-g", help="What the host shall be ready for.")
    ] = Generation.SEV,
    root: Annotated[
        Path, typer.Option("--root", file_okay=False, exists=True, help="Change the host below this directory.")
    ] = Path("/"),
    apply: Annotated[bool, typer.Option("--apply", help="Make the change; without it, it is only shown.")] = False,
    undo: Annotated[bool, typer.Option("--undo", help="Take back what --apply changed, byte for byte.")] = False,
    as_json: output.Json = False,
) -> None:
    """Show, and with --apply make, the changes that ready a host for encrypted guests.

    Boot line, options of kvm_amd, limits of locked memory. What only the BIOS or another kernel can give is told.
    Exit status: 0 done or shown, 1 refused or failed, 2 wrong usage. Below another root than /, no program is run.
    """
    if apply and undo:
        raise typer.BadParameter("--apply and --undo exclude each other")
    log.configure(LogSection(level="error"))
    with output.errors():
        files = HostFiles(root)
        try:
            answer = (
                _undo(files, as_json=as_json) if undo else _prepare(files, generation, apply=apply, as_json=as_json)
            )
        except OSError as error:
            raise SevAgentError(f"cannot read {error.filename}: {error.strerror}", remedy="run this as root") from None
    if as_json:
        output.print_json(answer)


def _prepare(files: HostFiles, generation: Generation, *, apply: bool, as_json: bool) -> dict[str, Any]:
    plan = make_plan(files, generation)
    if not as_json:
        _show(plan)
    if apply and plan.changes:
        Ledger(files).apply(plan.changes.files, plan.changes.undo)
        _run(files, plan.changes.commands, quiet=as_json)
        if files.is_live:
            _verify(files, generation)
    if not as_json:
        _show_next(plan, files, applied=apply)
    return plan.as_dict() | {"applied": apply}


def _undo(files: HostFiles, *, as_json: bool) -> dict[str, Any]:
    ledger = Ledger(files)
    changes, commands = ledger.reversal()
    is_empty = ledger.is_empty
    if not is_empty:
        ledger.restore(changes)
        _run(files, commands, quiet=as_json)
        ledger.forget()
    if not as_json:
        screen = output.screen()
        _show_files(screen, changes)
        screen.print(
            "This command has changed nothing here." if is_empty else "Taken back; a reboot puts it in effect."
        )
    return {
        "files": [{"path": f"/{change.path}", "diff": change.diff()} for change in changes],
        "commands": [command.as_dict() for command in commands],
    }


def _run(files: HostFiles, commands: Sequence[Command], *, quiet: bool) -> None:
    if files.is_live:
        programs.run(commands, say=lambda text: typer.echo(text, err=quiet))


def _verify(files: HostFiles, generation: Generation) -> None:
    """Raises ``NotInEffect``: a setting that a later file takes away again would show at the next boot only."""
    wanted = words(generation, files)
    for entry in boot_line.next_boot(files):
        if absent := missing(entry.line, wanted):
            raise NotInEffect(
                f"{entry.source} has no {' '.join(absent)} after all",
                remedy="look which file sets the boot line anew; --undo takes the change back",
            )


def _show(plan: Plan) -> None:
    screen = output.screen()
    _show_files(screen, plan.changes.files)
    if not plan.changes:
        screen.print(f"Nothing to change for {plan.generation.value}.")
    if plan.by_hand:
        screen.print("\n[bold]What no command can set[/]")
    for result in plan.by_hand:
        screen.print(
            f"  {output.cell(result.check.layer.value)}: {output.cell(result.check.title)}: "
            f"{output.cell(result.finding.found)}\n    {output.cell(result.finding.remedy)}",
            soft_wrap=True,
        )


def _show_files(screen: Console, changes: Sequence[FileChange]) -> None:
    for change in changes:
        for line in change.diff().splitlines():
            screen.print(output.printable(line), style=_DIFF_STYLES.get(line[:1]), markup=False, soft_wrap=True)


def _show_next(plan: Plan, files: HostFiles, *, applied: bool) -> None:
    screen = output.screen()
    if plan.changes and not applied:
        screen.print("\nNothing was changed. With --apply it is.")
    if plan.changes.commands and not (applied and files.is_live):
        screen.print(f"\n[bold]To be run then{'' if files.is_live else f', in {output.cell(files.root)}'}[/]")
        for command in plan.changes.commands:
            screen.print(f"  {output.cell(command)}: it {output.cell(command.why)}", soft_wrap=True)
    if plan.reboot:
        screen.print("\n[bold]A reboot is needed then[/]")
        for reason in plan.reboot:
            screen.print(f"  {output.cell(reason)}", soft_wrap=True)
