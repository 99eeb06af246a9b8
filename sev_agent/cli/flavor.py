"""``sev-agent flavor``: flavors for encrypted guests."""

import asyncio
from typing import Annotated

import typer

from sev_agent.cli import output
from sev_agent.cli.credentials import ComputeEndpoint, cloud
from sev_agent.openstack.compute_api import Flavor
from sev_agent.sev import tags
from sev_agent.sev.generation import Generation

app = typer.Typer(help="Make flavors for encrypted guests.", no_args_is_help=True, add_completion=False)


@app.callback()
def _group() -> None:
    """Make flavors for encrypted guests."""


@app.command()
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The flavor's name.")],
    vcpus: Annotated[int, typer.Option(min=1, help="Virtual processors.")] = 1,
    ram: Annotated[int, typer.Option(min=1, help="RAM, MiB.")] = 1024,
    disk: Annotated[int, typer.Option(min=1, help="Root disk, GiB.")] = 10,
    generation: Annotated[
        Generation | None, typer.Option("--generation", "-g", help="The generation of memory encryption.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Only for projects that are given access.")] = False,
    endpoint: ComputeEndpoint = None,
    as_json: output.Json = False,
) -> None:
    """Create a flavor that asks for memory encryption. Needs the role admin."""

    async def make() -> Flavor:
        async with cloud(endpoint) as services:
            return await services.compute.create_flavor(
                name, vcpus=vcpus, ram=ram, disk=disk, is_public=not private, extra_specs=tags.flavor_tags(generation)
            )

    with output.errors():
        flavor = asyncio.run(make())
    if as_json:
        output.print_json(
            {
                "id": flavor.id,
                "name": flavor.name,
                "vcpus": flavor.vcpus,
                "ram": flavor.ram,
                "disk": flavor.disk,
                "extra_specs": dict(flavor.extra_specs),
            }
        )
        return
    pairs = {
        "id": flavor.id,
        "name": flavor.name,
        "vcpus": flavor.vcpus,
        "ram": f"{flavor.ram} MiB",
        "disk": f"{flavor.disk} GiB",
        **flavor.extra_specs,
    }
    output.screen().print(output.details({key: output.cell(value) for key, value in pairs.items()}))
