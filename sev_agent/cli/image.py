"""``sev-agent image``: prepare an image in Glance for encrypted guests, and check it."""

import asyncio
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from sev_agent.cli import output, verdicts
from sev_agent.cli.credentials import ImageEndpoint, cloud
from sev_agent.openstack.glance import Image
from sev_agent.sev import tags
from sev_agent.sev.generation import Generation
from sev_agent.sev.refusals import Subject
from sev_agent.sev.rules import judge
from sev_agent.sev.verdict import Verdict

app = typer.Typer(help="Tag an image for encrypted guests, and check it.", no_args_is_help=True, add_completion=False)

ImageName = Annotated[str, typer.Argument(metavar="IMAGE", help="The image's name or ID.")]


@app.command()
def tag(
    image: ImageName,
    generation: Annotated[
        Generation | None, typer.Option("--generation", "-g", help="The generation that its guests need.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would change.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Change it without asking.")] = False,
    image_endpoint: ImageEndpoint = None,
    as_json: output.Json = False,
) -> None:
    """Give an image the properties that an encrypted guest needs, and show the difference first.

    What is there and works is left. Exit status 1 where something else of the image would still be refused.
    """
    with output.errors():
        found = asyncio.run(_find(image, image_endpoint))
    changes = tags.image_changes(found.properties, generation)
    judged = _judge(tags.changed(found.properties, changes), generation)
    refused = [verdict for verdict in judged if not verdict.ok]
    if not as_json:
        _show_changes(found, changes)
    apply = bool(changes) and not dry_run and (yes or typer.confirm("Change the image?", abort=True, err=True))
    if apply:
        with output.errors():
            asyncio.run(_change(found, changes, image_endpoint))
    if as_json:
        output.print_json(
            {
                "image": {"id": str(found.id), "name": found.name},
                "changes": {name: {"from": found.properties.get(name), "to": to} for name, to in changes.items()},
                "applied": apply,
                "refused": verdicts.as_json(refused),
            }
        )
    else:
        if apply:
            output.screen().print("The image is tagged.")
        if refused:
            output.screen().print("\nWhat no tag mends:")
            verdicts.show(refused)
    if refused:
        raise typer.Exit(output.FAILED)


@app.command()
def check(image: ImageName, image_endpoint: ImageEndpoint = None, as_json: output.Json = False) -> None:
    """Tell whether an image can become an encrypted guest, rule by rule. Exit status 1 where a rule refuses it."""
    with output.errors():
        found = asyncio.run(_find(image, image_endpoint))
    judged = _judge(found.properties, None)
    accepted = all(verdict.ok for verdict in judged)
    if as_json:
        output.print_json(
            {
                "ok": accepted,
                "image": {"id": str(found.id), "name": found.name},
                "rules": verdicts.as_json(judged),
            }
        )
    else:
        verdicts.show(judged)
    if not accepted:
        raise typer.Exit(output.FAILED)


def _judge(properties: Mapping[str, str], generation: Generation | None) -> list[Verdict]:
    """What the rules say of the image beside a flavor that is as it should be."""
    judged = judge(tags.flavor_tags(generation), properties)
    return [verdict for verdict in judged if verdict.subject is Subject.IMAGE or not verdict.ok]


async def _find(image: str, endpoint: str | None) -> Image:
    async with cloud(None, endpoint) as services:
        return await services.glance.find_image(image)


async def _change(image: Image, changes: Mapping[str, str | None], endpoint: str | None) -> None:
    async with cloud(None, endpoint) as services:
        await services.glance.set_properties(image.id, changes)


def _show_changes(image: Image, changes: Mapping[str, Any]) -> None:
    screen = output.screen()
    what = f"image {output.cell(image.name)} {image.id}"
    if not changes:
        screen.print(f"{what} is tagged; nothing to change.", soft_wrap=True)
        return
    screen.print(what, soft_wrap=True)
    table = output.table("property", "now", "then")
    for name, value in changes.items():
        then = "[yellow]removed[/]" if value is None else f"[green]{output.cell(value)}[/]"
        table.add_row(output.cell(name), output.cell(image.properties.get(name)), then)
    screen.print(table)
