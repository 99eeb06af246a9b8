"""``sev-agent check``: whether this host can run encrypted guests, and why not."""

import asyncio
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.markup import escape

from sev_agent import log
from sev_agent.cli import output
from sev_agent.config import AgentConfig, HypervisorSection, LogSection, load
from sev_agent.errors import SevAgentError
from sev_agent.host.capture import capture
from sev_agent.host.check import Outcome, Result
from sev_agent.host.examination import Readiness, Report, examine
from sev_agent.host.inquiry import domain_capabilities, gather
from sev_agent.hypervisor.capabilities import DomainCapabilities
from sev_agent.hypervisor.host_files import HostFiles
from sev_agent.sev.generation import Generation

app = typer.Typer(add_completion=False)

_STYLES: Final = {
    Outcome.PASSED: ("✓", "green"),
    Outcome.FAILED: ("✗", "red"),
    Outcome.UNKNOWN: ("?", "yellow"),
    Outcome.SKIPPED: ("-", "bright_black"),
}
_ADVICE: Final = ("!", "yellow")
_VERDICT_STYLES: Final = {Readiness.READY: "green", Readiness.NOT_READY: "red", Readiness.NOT_PROVEN: "yellow"}

Root = Annotated[
    Path | None,
    typer.Option("--root", file_okay=False, exists=True, help="Judge the host whose files are below this directory."),
]
Wanted = Annotated[
    Generation | None, typer.Option("--generation", "-g", help="Ready for this generation; without it, for any.")
]


@app.command()
def check(
    generation: Wanted = None,
    root: Root = None,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config", "-c", readable=False, help="The daemon's TOML file: then Placement and RabbitMQ are asked too."
        ),
    ] = None,
    capture_to: Annotated[
        Path | None,
        typer.Option(
            "--capture", file_okay=False, help="Write all that is looked at below this new directory, for --root."
        ),
    ] = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="What was expected and where it was read, also of what passed.")
    ] = False,
    as_json: output.Json = False,
) -> None:
    """Say whether this host can run encrypted guests, and name the one layer to mend first.

    It changes nothing. Run it as root: some of what it reads is hidden from others. Exit status: 0 only if the host is
    ready for the generation (without one: for any), 1 if it is not or that is not proven, 2 for wrong usage, 78 where
    the configuration cannot be used.
    """
    log.configure(LogSection(level="error"))
    with output.errors():
        settings = None if config is None else load(config)
        where = root or (Path("/") if settings is None else settings.encryption.platform_root)
        files = HostFiles(where)
        if capture_to is not None:
            _capture(files, settings, capture_to)
            return
        report = examine(asyncio.run(gather(files, settings)))
    if as_json:
        output.print_json(_as_dict(report, files, generation))
    else:
        _show(report, files, generation, verbose=verbose)
    if not report.is_ready(generation):
        raise typer.Exit(output.FAILED)


def _capture(files: HostFiles, settings: AgentConfig | None, target: Path) -> None:
    hypervisor = HypervisorSection() if settings is None else settings.hypervisor
    told: DomainCapabilities | SevAgentError | None = None
    if files.is_live or settings is not None:
        try:
            told = asyncio.run(domain_capabilities(hypervisor))
        except SevAgentError as error:
            told = error
    try:
        count = capture(files, told, target)
    except OSError as error:
        raise SevAgentError(f"cannot write {error.filename}: {error.strerror}", remedy="look at the disk") from None
    typer.echo(f"{count} files below {target}: sev-agent check --root {target}")


def _as_dict(report: Report, files: HostFiles, generation: Generation | None) -> dict[str, Any]:
    mend = report.first_to_mend(generation)
    return {
        "root": str(files.root),
        "simulated": report.simulated,
        "ready": report.is_ready(generation),
        "mend_first": None if mend is None else mend.as_dict(),
        "verdicts": {wanted.value: verdict.as_dict() for wanted, verdict in report.verdicts.items()},
        "advice": [result.check.name for result in report.advice],
        "checks": [result.as_dict() for result in report.results],
    }


def _show(report: Report, files: HostFiles, generation: Generation | None, *, verbose: bool) -> None:
    screen = output.screen()
    if report.simulated:
        screen.print("[yellow]This is a simulated platform: no memory is encrypted here.[/]\n")
    layer = None
    for result in report.results:
        if generation is not None and result.check.generations and generation not in result.check.generations:
            continue
        if result.check.layer is not layer:
            layer = result.check.layer
            screen.print(f"[bold]{layer.value}[/]")
        _show_result(screen, result, verbose=verbose)
    screen.print()
    verdicts = output.table("generation", "verdict", "layer to mend first", "check")
    for wanted, verdict in report.verdicts.items():
        mend = verdict.mend
        style = _VERDICT_STYLES[verdict.readiness]
        verdicts.add_row(
            wanted.value,
            f"[{style}]{verdict.readiness.value}[/]",
            output.cell(mend and mend.check.layer.value),
            output.cell(mend and mend.check.name),
        )
    screen.print(verdicts)
    for result in report.advice:
        screen.print(f"[yellow]advice[/] {result.check.layer.value}: {escape(result.finding.remedy)}", soft_wrap=True)
    _show_end(screen, report, files, generation)


def _show_result(screen: Console, result: Result, *, verbose: bool) -> None:
    mark, style = _ADVICE if result.is_advice else _STYLES[result.outcome]
    finding = result.finding
    found = output.cell(finding.found)
    screen.print(f"  [{style}]{mark}[/] {escape(result.check.title)}: {found}", soft_wrap=True)
    if verbose or result.outcome in {Outcome.FAILED, Outcome.UNKNOWN}:
        rows = {"expected": finding.expected, "read from": finding.source, "remedy": finding.remedy}
        for name, text in rows.items():
            if text:
                screen.print(f"      [bright_black]{name}[/] {output.cell(text)}", soft_wrap=True)


def _show_end(screen: Console, report: Report, files: HostFiles, generation: Generation | None) -> None:
    mend = report.first_to_mend(generation)
    wanted = generation.value if generation else "encrypted guests"
    host = "this host" if files.is_live else f"the host below {files.root}"
    if mend is None:
        screen.print(f"\n[green]ready[/]: {escape(host)} can run {wanted}")
        return
    proven = report.verdicts[generation or Generation.SEV].readiness is Readiness.NOT_READY
    verdict = "[red]not ready[/]" if proven else "[yellow]not proven[/]"
    what = f"{host} cannot run {wanted}" if proven else f"that {host} can run {wanted} could not be seen"
    screen.print(f"\n{verdict}: {escape(what)}", soft_wrap=True)
    screen.print(
        f"mend first: [bold]{mend.check.layer.value}[/]: {output.cell(mend.finding.found)}\n"
        f"  {output.cell(mend.finding.remedy)}",
        soft_wrap=True,
    )
