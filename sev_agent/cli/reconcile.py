"""``sev-agent reconcile``: compare what Placement counts of one host with what the host runs, now."""

import asyncio
from typing import Annotated, Any, Final

import typer

from sev_agent.cli import output
from sev_agent.cli.remote import BrokerUrl, HostName, connected
from sev_agent.schema import RECONCILE_SECONDS

app = typer.Typer(add_completion=False)

_DEFAULT_BROKER: Final = "amqp://guest:guest@127.0.0.1:5672/"


@app.command()
def reconcile(
    host: HostName,
    broker: BrokerUrl = _DEFAULT_BROKER,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what differs.")] = False,
    as_json: output.Json = False,
) -> None:
    """Compare what Placement counts of a host with what it runs, and repair what differs.

    Exit status 1 where something differs that was not repaired, also because of --dry-run.
    """

    async def order() -> Any:
        async with connected(broker, host) as remote:
            return await remote.ask_long("reconcile", limit=RECONCILE_SECONDS, dry_run=dry_run)

    with output.errors():
        report = asyncio.run(order())
    differences = report["differences"]
    if as_json:
        output.print_json({"host": host, **report})
    elif differences:
        _show(differences)
    else:
        typer.echo(f"Placement counts what {host} runs.")
    if not all(found["repaired"] for found in differences):
        raise typer.Exit(output.FAILED)


def _show(differences: list[dict[str, Any]]) -> None:
    table = output.table("consumer or provider", "difference", "held", "wanted", "repaired")
    for found in differences:
        repaired = "[green]yes[/]" if found["repaired"] else "[yellow]no[/]"
        table.add_row(
            output.cell(found["subject"]),
            output.cell(found["kind"].replace("_", " ")),
            output.cell(_amounts(found["held"])),
            output.cell(_amounts(found["wanted"])),
            repaired if found["error"] is None else f"[red]no[/]: {output.cell(found['error'])}",
        )
    output.screen().print(table)


def _amounts(tree: dict[str, Any]) -> str:
    """Amounts by class on one line; where they are nested (by provider, by class), each nest by itself."""
    nests = [value for value in tree.values() if isinstance(value, dict)]
    if not nests:
        return ", ".join(f"{name} {amount}" for name, amount in tree.items())
    is_by_class = all(name.isupper() for name in tree)
    parts = (f"{name}: {_amounts(nest)}" if is_by_class else _amounts(nest) for name, nest in tree.items())
    return " + ".join(parts)
