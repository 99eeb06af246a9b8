"""``sev-agent firmware``: which firmware guests of each generation get on this host, and why not another."""

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console

from sev_agent import config
from sev_agent.cli import output
from sev_agent.compute.firmware_files import FirmwareUnreadable, firmware_digest
from sev_agent.config import HypervisorSection
from sev_agent.domain.firmware import (
    Candidate,
    DescriptorFile,
    FirmwareWanted,
    FlashBuild,
    MemoryBuild,
    judge_firmware,
    remedy_of,
)
from sev_agent.hypervisor.firmware_descriptors import below, descriptors
from sev_agent.sev.generation import Generation

app = typer.Typer(add_completion=False)

_ROOT: Final = Path("/")


@dataclass(frozen=True, slots=True)
class Finding:
    """What one kind of guest gets: ``taken`` is the descriptor and what it maps, ``None`` for nothing.

    ``digest`` is the SHA-256 of the firmware's code, ``None`` where the file cannot be read.
    """

    wanted: FirmwareWanted
    candidates: tuple[Candidate, ...]
    taken: tuple[Path, FlashBuild | MemoryBuild] | None
    digest: str | None


@app.command()
def firmware(
    generation: Annotated[
        list[Generation] | None,
        typer.Option("--generation", "-g", help="Only this one; may be given again."),
    ] = None,
    stateless: Annotated[
        bool, typer.Option("--stateless", help="As for an image with hw_firmware_stateless=true.")
    ] = False,
    secure_boot: Annotated[bool, typer.Option("--secure-boot", help="Firmware with Secure Boot and its keys.")] = False,
    machine: Annotated[str, typer.Option(help="The machine type, as hw_machine_type says it.")] = "q35",
    root: Annotated[
        Path, typer.Option(file_okay=False, exists=True, help="Judge the host whose files are below this directory.")
    ] = _ROOT,
    config_file: Annotated[
        Path | None,
        typer.Option("--config", "-c", readable=False, help="The daemon's file, for its hypervisor.firmware_dirs."),
    ] = None,
    as_json: output.Json = False,
) -> None:
    """List every firmware that QEMU's descriptors offer, and why it is taken or not.

    Exit status 1 where a generation that was asked for by name has none.
    """
    with output.errors():
        section = HypervisorSection() if config_file is None else config.load(config_file).hypervisor
        files = descriptors(section.firmware_dirs, root=root)
        findings = [
            asyncio.run(_find(files, wanted, root))
            for wanted in (
                FirmwareWanted(generation=each, machine=machine, secure_boot=secure_boot, asks_stateless=stateless)
                for each in generation or Generation
            )
        ]
    if as_json:
        output.print_json([_value(finding) for finding in findings])
    else:
        _show(findings, output.screen())
    if generation and not all(finding.taken for finding in findings):
        raise typer.Exit(output.FAILED)


async def _find(files: tuple[DescriptorFile, ...], wanted: FirmwareWanted, root: Path) -> Finding:
    candidates, taken = judge_firmware(files, wanted)
    digest = None
    if taken is not None:
        try:
            digest = await firmware_digest(below(root, taken[1].code))
        except FirmwareUnreadable:
            digest = None
    return Finding(wanted, candidates, taken, digest)


def _show(findings: list[Finding], screen: Console) -> None:
    for number, finding in enumerate(findings):
        if number:
            screen.print()
        screen.print(f"[bold]{_heading(finding.wanted)}[/]")
        if finding.candidates:
            table = output.table("descriptor", "", "why")
            for each in finding.candidates:
                verdict = "[green]fits[/]" if each.accepted else "[yellow]no[/]"
                table.add_row(output.cell(each.path), verdict, output.cell(each.reason))
            screen.print(table)
        screen.print(_conclusion(finding), soft_wrap=True)


def _heading(wanted: FirmwareWanted) -> str:
    kinds = ["stateless"] if wanted.stateless else []
    kinds += ["with Secure Boot"] if wanted.secure_boot else []
    return f"{wanted.generation} on {output.cell(wanted.machine)}{''.join(f', {kind}' for kind in kinds)}"


def _conclusion(finding: Finding) -> str:
    if finding.taken is None:
        return f"[red]none:[/] {output.cell(remedy_of(finding.wanted.generation))}"
    digest = f"sha256 {finding.digest}" if finding.digest else "[red]which is not there or cannot be read[/]"
    return f"[green]takes[/] {output.cell(finding.taken[1].code)} ({_mapping(finding.taken[1])}), {digest}"


def _mapping(build: FlashBuild | MemoryBuild) -> str:
    match build:
        case FlashBuild(nvram_template=None):
            return "flash without variables"
        case FlashBuild():
            return "flash"
        case MemoryBuild():
            return "memory"


def _value(finding: Finding) -> dict[str, Any]:
    taken = None
    if finding.taken is not None:
        descriptor, build = finding.taken
        template = build.nvram_template if isinstance(build, FlashBuild) else None
        taken = {
            "descriptor": str(descriptor),
            "code": str(build.code),
            "sha256": finding.digest,
            "mapping": _mapping(build),
            "nvram_template": None if template is None else str(template),
        }
    wanted = finding.wanted
    return {
        "generation": wanted.generation.value,
        "machine": wanted.machine,
        "stateless": wanted.stateless,
        "secure_boot": wanted.secure_boot,
        "taken": taken,
        "remedy": None if taken else remedy_of(wanted.generation),
        "candidates": [
            {
                "path": str(each.path),
                "description": each.description,
                "accepted": each.accepted,
                "reason": each.reason,
            }
            for each in finding.candidates
        ],
    }
