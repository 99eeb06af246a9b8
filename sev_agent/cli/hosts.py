"""``sev-agent hosts``: the fleet as the scheduler sees it."""

import asyncio
from pathlib import Path
from typing import Annotated, Any

import aiohttp
import typer
from rich.table import Table

from sev_agent.cli import output
from sev_agent.cli.remote import connected
from sev_agent.config import SchedulerConfig, load_as
from sev_agent.openstack.identity import identify
from sev_agent.openstack.placement import Placement
from sev_agent.scheduler.aliveness import Aliveness
from sev_agent.scheduler.fleet import Fleet, HostView

app = typer.Typer(add_completion=False)


@app.command()
def hosts(
    config: Annotated[
        Path,
        typer.Option("--config", "-c", envvar="SEV_AGENT_CONFIG", readable=False, help="The scheduler's TOML file."),
    ] = Path("/etc/sev-agent/sev-agent-scheduler.toml"),
    as_json: output.Json = False,
) -> None:
    """Show every compute host: whether it is of node type sev, alive, and what it has left."""
    with output.errors():
        fleet = asyncio.run(_look(load_as(SchedulerConfig, config)))
    if as_json:
        output.print_json([document(host) for host in fleet])
    elif fleet:
        output.screen().print(table(fleet))
    else:
        typer.echo("Placement knows no compute host: sev-agent registers one when it starts there.")


async def _look(settings: SchedulerConfig) -> list[HostView]:
    async with (
        aiohttp.ClientSession() as session,
        connected(settings.messaging.url.get_secret_value(), "", told_by="messaging.url") as remote,
    ):
        placement = Placement(session, identify(settings.auth, session), settings.placement)
        fleet = Fleet(placement, Aliveness(remote.client), max_candidates=settings.scheduler.max_candidates)
        return await fleet.hosts()


def document(host: HostView) -> dict[str, Any]:
    """One host as JSON. Sizes are MiB and GiB."""
    return {
        "host": host.name,
        "node_type": "sev" if host.is_sev else None,
        "enabled": host.enabled,
        "alive": host.alive,
        "generations": {name.value: {"used": pool.used, "limit": pool.limit} for name, pool in host.slots.items()},
        "mem_encryption_used_num": host.mem_encryption_used_num,
        "limit": host.limit,
        "ram_free_mb": host.ram_free_mb,
        "vcpus_free": host.vcpus_free,
        "disk_free_gb": host.disk_free_gb,
    }


def table(fleet: list[HostView]) -> Table:
    """A line for each host. What makes one unfit is in colour."""
    columns = (
        "host",
        "node type",
        "alive",
        "generations",
        "mem_encryption_used_num",
        "limit",
        "free RAM",
        "free vCPUs",
    )
    result = output.table(*columns)
    for host in fleet:
        alive = "[green]yes[/]" if host.alive else "[red]no[/]"
        result.add_row(
            output.cell(host.name),
            output.cell("sev" if host.is_sev else None),
            alive if host.enabled else f"{alive}, [yellow]disabled[/]",
            output.cell(", ".join(_pool(name, host) for name in host.slots)),
            f"[red]{host.mem_encryption_used_num}[/]" if _is_full(host) else str(host.mem_encryption_used_num),
            str(host.limit),
            f"{host.ram_free_mb} MiB",
            str(host.vcpus_free),
        )
    return result


def _pool(name: Any, host: HostView) -> str:
    pool = host.slots[name]
    # With one pool the columns beside it say the same.
    return f"{name}" if len(host.slots) == 1 else f"{name} {pool.used}/{pool.limit}"


def _is_full(host: HostView) -> bool:
    return host.limit > 0 and host.mem_encryption_used_num >= host.limit
