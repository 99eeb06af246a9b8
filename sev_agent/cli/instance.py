"""``sev-agent instance``: the operator's commands for the instances of one host."""

import asyncio
import base64
from pathlib import Path
from typing import Annotated, Any, Final
from uuid import uuid4

import typer
from rich.console import Console

from sev_agent.cli import output
from sev_agent.cli.following import fault_of, follow_build, follow_deletion, follow_power, request_build
from sev_agent.cli.remote import BrokerUrl, HostName, Uuid, connected, parse_uuid
from sev_agent.errors import InvalidRequest
from sev_agent.schema import MAX_USER_DATA, BuildArguments, parse

app = typer.Typer(
    help="Build, list, show, start, stop, reboot and delete the instances of one host.",
    no_args_is_help=True,
    add_completion=False,
)

_ROOMY: Final = 110
_DEFAULT_BROKER: Final = "amqp://guest:guest@127.0.0.1:5672/"

_OPTIONS: Final = {
    "instance.name": "--name",
    "instance.image": "--image",
    "instance.flavor.vcpus": "--vcpus",
    "instance.flavor.memory_mb": "--memory",
    "instance.flavor.root_gb": "--disk",
    "instance.networks": "--network",
    "instance.user_data": "--user-data",
}
"""The options of a build by the beginnings of what they become in its request."""

Wait = Annotated[bool, typer.Option(help="Wait for the end, and show the progress.")]
Timeout = Annotated[float, typer.Option("--timeout", min=1, help="Seconds to wait.")]


@app.command()
def build(
    image: Annotated[str, typer.Option(help="The image's UUID in Glance.")],
    host: HostName,
    broker: BrokerUrl = _DEFAULT_BROKER,
    name: Annotated[str, typer.Option(help="The instance's name.")] = "guest",
    vcpus: Annotated[int, typer.Option(help="Virtual processors.")] = 1,
    memory: Annotated[int, typer.Option(help="RAM, MiB.")] = 256,
    disk: Annotated[int, typer.Option(help="Root disk, GiB.")] = 1,
    network: Annotated[
        list[str] | None,
        typer.Option(
            help="A NIC: none, user, bridge:NAME or network:NAME. May be given several times.", show_default="no NIC"
        ),
    ] = None,
    user_data: Annotated[Path | None, typer.Option(help="A file that the guest reads at its first boot.")] = None,
    uuid: Annotated[str | None, typer.Option(help="The instance's UUID.", show_default="a new one")] = None,
    auto_start: Annotated[bool, typer.Option("--auto-start", help="Start it again after the host restarts.")] = False,
    wait: Wait = True,
    timeout: Timeout = 600,
    as_json: output.Json = False,
) -> None:
    """Build an encrypted instance, and show the steps as they end."""
    with output.errors():
        instance: dict[str, Any] = {
            "uuid": parse_uuid(uuid) if uuid else str(uuid4()),
            "name": name,
            "flavor": {
                "name": f"{vcpus}x{memory}",
                "vcpus": vcpus,
                "memory_mb": memory,
                "root_gb": disk,
                "extra_specs": {"hw:mem_encryption": "true"},
            },
            "image": {"id": image},
            "networks": [_network(text) for text in network or ()],
        }
        if auto_start:
            instance["auto_start"] = True
        if user_data is not None:
            instance["user_data"] = _encoded(user_data)
        _check(instance)
        view = asyncio.run(_build(broker, host, instance, limit=timeout if wait else None, quiet=as_json))
    _show(view, as_json=as_json)


@app.command("list")
def list_(host: HostName, broker: BrokerUrl = _DEFAULT_BROKER, as_json: output.Json = False) -> None:
    """List the instances of a host."""

    async def ask() -> Any:
        async with connected(broker, host) as remote:
            return await remote.ask("list_instances")

    with output.errors():
        views = asyncio.run(ask())
    if as_json:
        output.print_json(views)
        return
    screen = output.screen()
    # On the usual 80 columns, what fits beside a UUID; 'show' has the rest.
    more = ("encryption", "created") if screen.width >= _ROOMY else ()
    table = output.table("uuid", "name", "state", "vcpus", "memory", "disk", *more)
    for view in views:
        flavor = view["flavor"]
        row = (
            output.cell(view["uuid"]),
            output.cell(view["name"]),
            output.state(view["state"]),
            output.cell(flavor["vcpus"]),
            output.cell(f"{flavor['memory_mb']} MiB"),
            output.cell(f"{flavor['root_gb']} GiB"),
        )
        table.add_row(*row, *((output.cell(view["generation"]), output.cell(view["created_at"][:19])) if more else ()))
    screen.print(table)


@app.command()
def show(uuid: Uuid, host: HostName, broker: BrokerUrl = _DEFAULT_BROKER, as_json: output.Json = False) -> None:
    """Show one instance."""

    async def ask(instance: str) -> Any:
        async with connected(broker, host) as remote:
            return await remote.ask("get_instance", instance_uuid=instance)

    with output.errors():
        view = asyncio.run(ask(parse_uuid(uuid)))
    _show(view, as_json=as_json)


@app.command()
def console(
    uuid: Uuid,
    host: HostName,
    broker: BrokerUrl = _DEFAULT_BROKER,
    lines: Annotated[int | None, typer.Option("-n", "--lines", min=1, help="Only the last lines.")] = None,
    as_json: output.Json = False,
) -> None:
    """Print what the guest wrote to its serial console."""

    async def ask(instance: str) -> Any:
        async with connected(broker, host) as remote:
            return await remote.ask("get_console_output", instance_uuid=instance, length=lines)

    with output.errors():
        text = asyncio.run(ask(parse_uuid(uuid)))
    if as_json:
        output.print_json({"uuid": uuid, "output": text})
    else:
        typer.echo(output.printable(text), nl=False)


def _power_command(name: str, method: str, text: str) -> None:
    """A command that has the host carry out ``method`` on one instance, and shows what comes of it."""

    @app.command(name, help=text)
    def command(
        uuid: Uuid,
        host: HostName,
        broker: BrokerUrl = _DEFAULT_BROKER,
        wait: Wait = True,
        timeout: Timeout = 120,
        as_json: output.Json = False,
    ) -> None:
        _change_power(method, uuid, host, broker, limit=timeout if wait else None, as_json=as_json)


_power_command("start", "start_instance", "Start an instance that is stopped, if there is a slot for it.")
_power_command(
    "stop",
    "stop_instance",
    "Let an instance shut itself down; after the host's time limit it is ended. Its slot becomes free.",
)


@app.command()
def reboot(
    uuid: Uuid,
    host: HostName,
    broker: BrokerUrl = _DEFAULT_BROKER,
    hard: Annotated[bool, typer.Option("--hard", help="Do not ask the guest.")] = False,
    wait: Wait = True,
    timeout: Timeout = 240,
    as_json: output.Json = False,
) -> None:
    """Stop an instance and start it again, without giving its slot back in between."""
    kind = "HARD" if hard else "SOFT"
    _change_power(
        "reboot_instance", uuid, host, broker, limit=timeout if wait else None, as_json=as_json, reboot_type=kind
    )


@app.command()
def delete(
    uuid: Uuid,
    host: HostName,
    broker: BrokerUrl = _DEFAULT_BROKER,
    wait: Wait = True,
    timeout: Timeout = 120,
    as_json: output.Json = False,
) -> None:
    """Delete an instance. One that is gone already is a success."""
    with output.errors():
        uuid = parse_uuid(uuid)
        asyncio.run(_delete(broker, host, uuid, limit=timeout if wait else None))
    if as_json:
        output.print_json({"uuid": uuid, "state": "deleted" if wait else "deleting"})
    else:
        typer.echo(f"Instance {uuid} is deleted." if wait else f"Instance {uuid} is being deleted.")


def _change_power(
    method: str, uuid: str, host: str, broker: str, *, limit: float | None, as_json: bool, **arguments: str
) -> None:
    async def ask() -> dict[str, Any]:
        async with connected(broker, host) as remote:
            return await follow_power(remote, method, {"instance_uuid": parse_uuid(uuid), **arguments}, limit=limit)

    with output.errors():
        view = asyncio.run(ask())
    _show(view, as_json=as_json)


def _check(instance: dict[str, Any]) -> None:
    """Raises ``WrongUsage`` that names the option by which a host would refuse ``instance``."""
    try:
        parse(BuildArguments, {"instance": instance})
    except InvalidRequest as error:
        field = error.field or ""
        option = next((option for path, option in _OPTIONS.items() if field.startswith(path)), field)
        raise output.WrongUsage(error.message, field=option, remedy="sev-agent instance build --help") from None


async def _build(url: str, host: str, instance: dict[str, Any], *, limit: float | None, quiet: bool) -> dict[str, Any]:
    screen = Console(stderr=True, quiet=quiet)
    async with connected(url, host) as remote:
        if limit is not None:
            return await follow_build(remote, instance, limit=limit, screen=screen)
        await request_build(remote, instance, screen)
        view: Any = await remote.ask("get_instance", instance_uuid=instance["uuid"])
        return dict(view)


async def _delete(url: str, host: str, uuid: str, *, limit: float | None) -> None:
    async with connected(url, host) as remote:
        if limit is None:
            await remote.order("terminate_instance", instance_uuid=uuid)
        else:
            await follow_deletion(remote, uuid, limit=limit)


def _show(view: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        output.print_json(view)
        return
    flavor = view["flavor"]
    pairs = {
        "uuid": view["uuid"],
        "name": view["name"],
        "host": view["host"],
        "state": view["state"],
        "under way": ", ".join(view["steps"]),
        "starts with host": "yes" if view["auto_start"] else "no",
        "encryption": view["generation"],
        "size": f"{flavor['vcpus']} vCPU, {flavor['memory_mb']} MiB, {flavor['root_gb']} GiB",
        "image": view["image_id"],
        "firmware": view["firmware"],
        "firmware sha256": view.get("firmware_sha256"),
        "created": view["created_at"],
        "updated": view["updated_at"],
        "request": view["request_id"],
    }
    if view["fault"]:
        pairs["fault"] = fault_of(view)
    if waiting := view["waiting_for"]:
        pairs["waits for"] = f"{waiting['code']}: {waiting['message']}"
    cells = {name: output.cell(value) for name, value in pairs.items()}
    output.screen().print(output.details(cells | {"state": output.state(view["state"])}))


def _network(text: str) -> dict[str, str]:
    kind, _, source = text.partition(":")
    return {"type": kind, "source": source} if source else {"type": kind}


def _encoded(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_USER_DATA + 1)
        return base64.b64encode(content).decode()
    except OSError as error:
        raise output.WrongUsage(f"{path} cannot be read: {error.strerror}", field="--user-data") from None
