"""``sev-agent validate``: what the API would say of a server of this flavor and this image."""

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from sev_agent.cli import output, verdicts
from sev_agent.cli.credentials import ComputeEndpoint, ImageEndpoint, cloud
from sev_agent.config import ApiConfig, PolicySection, load_as
from sev_agent.openstack.compute_api import Flavor
from sev_agent.openstack.glance import Image
from sev_agent.sev.image_form import ImageForm, judge_form
from sev_agent.sev.rules import judge
from sev_agent.sev.sizes import Sizes

app = typer.Typer(add_completion=False)


@app.command()
def validate(
    flavor: Annotated[str, typer.Option(help="The flavor's name or ID.")],
    image: Annotated[str, typer.Option(help="The image's name or ID.")],
    endpoint: ComputeEndpoint = None,
    image_endpoint: ImageEndpoint = None,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            "-c",
            readable=False,
            help="The API's TOML file, whose bounds on policies count.",
            show_default="the default bounds",
        ),
    ] = None,
    as_json: output.Json = False,
) -> None:
    """Tell beforehand what the API would say of a server of this flavor and this image, rule by rule.

    Speaks as the user of the OS_* variables. Exit status 0 where every rule holds, 1 where one refuses.
    """
    with output.errors():
        encryption = PolicySection() if config is None else load_as(ApiConfig, config).encryption
        found_flavor, found_image = asyncio.run(_fetch(flavor, image, endpoint, image_endpoint))
    sizes = Sizes(
        ram=found_flavor.ram,
        disk=found_flavor.disk,
        min_ram=found_image.min_ram,
        min_disk=found_image.min_disk,
        virtual_size=found_image.virtual_size,
    )
    form = ImageForm(
        status=found_image.status,
        disk_format=found_image.disk_format,
        container_format=found_image.container_format,
    )
    judged = (
        *judge_form(form),
        *judge(found_flavor.extra_specs, found_image.properties, sizes, bounds=encryption.policy_bounds),
    )
    accepted = all(verdict.ok for verdict in judged)
    if as_json:
        output.print_json(
            {
                "ok": accepted,
                "flavor": {"id": found_flavor.id, "name": found_flavor.name},
                "image": {"id": str(found_image.id), "name": found_image.name},
                "rules": verdicts.as_json(judged),
            }
        )
    else:
        verdicts.show(judged)
        names = f"flavor {output.cell(found_flavor.name)} and image {output.cell(found_image.name)}"
        verdict = "[green]make an encrypted server[/]" if accepted else "[red]make no encrypted server[/]"
        output.screen().print(f"\n{names} {verdict}", soft_wrap=True)
    if not accepted:
        raise typer.Exit(output.FAILED)


async def _fetch(flavor: str, image: str, endpoint: str | None, image_endpoint: str | None) -> tuple[Flavor, Image]:
    async with cloud(endpoint, image_endpoint) as services:
        return await services.compute.find_flavor(flavor), await services.glance.find_image(image)
