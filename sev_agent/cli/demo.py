"""``sev-agent demo``: from a bare machine to a running encrypted server, with stock commands and the evidence."""

import asyncio
import json
import shlex
import time
from typing import Any, Final
from uuid import UUID

import aiohttp
import typer
from rich.console import Console
from rich.rule import Rule

from sev_agent.cli import output
from sev_agent.cli.lab import Cache, Directory, bring_up
from sev_agent.domain.identity import domain_name
from sev_agent.errors import SevAgentError
from sev_agent.lab import daemons, evidence, flavors, images
from sev_agent.lab.accounts import ADMIN
from sev_agent.lab.cloud import DEFAULT_DIRECTORY, Lab
from sev_agent.lab.host import Host
from sev_agent.lab.openrc import StockClient
from sev_agent.sev import tags
from sev_agent.subprocesses import run_bounded

app = typer.Typer(add_completion=False)

HOSTS: Final = 3
TENANT: Final = "red-member"
FLAVOR: Final = "demo.sev"
_READY: Final = "sev-agent-guest: ready"
_BOOT_SECONDS: Final = 240.0
_BUILD_SECONDS: Final = 300.0
_POLL_SECONDS: Final = 0.5
_CONSOLE_LINES: Final = 12
_screen: Final = Console(highlight=False, soft_wrap=True)


class GuestSilent(SevAgentError):
    """The guest did not say that it is ready."""

    code = "demo.guest_silent"


@app.command()
def demo(directory: Directory = DEFAULT_DIRECTORY, cache: Cache = None) -> None:
    """Bring a lab up, create an encrypted server in it, show the evidence. Exit status 0 only if all of it holds."""
    started = time.monotonic()
    with output.errors():
        lab = bring_up(directory, cache, lambda lab: lab.up(hosts=HOSTS))
        server, host = asyncio.run(_Demo(lab).show())
    _screen.print(f"\nAll of it holds, after {time.monotonic() - started:.0f} s.", style="bold green")
    _say_what_next(lab, server, host)


class _Demo:
    """What is shown of ``lab``: the operator prepares, a tenant asks."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._operator = lab.stock_client(ADMIN)
        self._tenant = lab.stock_client(TENANT)

    async def show(self) -> tuple[UUID, Host]:
        """Show it all; the value is the server that stays, and its host."""
        await self._prepare()
        _chapter("The fleet before: what Placement counts, and who is alive")
        await self._fleet()

        _chapter("One encrypted server, asked for by a tenant")
        uuid = await self._create("demo-guest")
        host = await self._placed(uuid)
        text = await self._wait_for_guest(host, uuid)

        _chapter(f"What libvirt on {host.name} says of the running domain")
        found = await evidence.domain_evidence(host, uuid)
        evidence.check(found)
        _print_domain(found)

        _chapter("The count while it runs, and while a second server came and went (Placement)")
        await self._second(host)

        _chapter(f"What the daemon of {host.name} says of itself (metrics)")
        for line in await evidence.metrics(self._lab, host):
            _screen.print(f"  {line}", markup=False)

        _chapter("What the guest printed on its console")
        await _run(self._tenant, "console", "log", "show", "--lines", str(_CONSOLE_LINES), str(uuid))
        if f"sev-agent-guest: uuid {uuid}" not in text:
            raise GuestSilent(f"the guest did not print its own UUID {uuid}")
        return uuid, host

    async def _prepare(self) -> None:
        _chapter("The image and the flavor, tagged as the method asks")
        properties = (f"--property={name}={value}" for name, value in tags.IMAGE.items())
        await _run(self._operator, "image", "set", *properties, images.NAME)
        shown = await self._operator.ask("image", "show", images.NAME)
        wanted = {name: value for name, value in shown["properties"].items() if name.startswith("hw_")}
        _screen.print(output.details({"image": f"{shown['name']} {shown['id']}", **wanted}))
        async with aiohttp.ClientSession() as session:
            exists = await flavors.exists(session, self._lab.cloud, self._lab.compute_urls[0], FLAVOR)
        if exists:
            await _run(self._operator, "flavor", "show", FLAVOR, "-c", "name", "-c", "properties")
            return
        asked = (f"--property={name}={value}" for name, value in tags.flavor_tags().items())
        size = ("--vcpus", "1", "--ram", "256", "--disk", "1")
        await _run(self._operator, "flavor", "create", *size, *asked, "-c", "name", "-c", "properties", FLAVOR)

    async def _create(self, name: str) -> UUID:
        """Have a server created, and wait until it is ACTIVE. Raises ``ProgramFailed`` where it does not become so."""
        created = json.loads(
            await _run(
                self._tenant,
                *("server", "create", "--flavor", FLAVOR, "--image", images.NAME, "--wait", "-f", "json", name),
                show=False,
            )
        )
        _screen.print(output.details({key: output.cell(created[key]) for key in ("id", "name", "status", "created")}))
        return UUID(created["id"])

    async def _placed(self, uuid: UUID) -> Host:
        """The host that was chosen; says why."""
        columns = ("OS-EXT-SRV-ATTR:host", "OS-EXT-STS:vm_state", "OS-EXT-STS:power_state", "OS-SRV-USG:launched_at")
        shown = await self._operator.ask("server", "show", str(uuid))
        _command(self._operator, ("server", "show", str(uuid)))
        _screen.print(output.details({key: output.cell(shown[key]) for key in columns if key in shown}))
        host = self._lab.host(str(shown["OS-EXT-SRV-ATTR:host"]))
        counts = await asyncio.to_thread(evidence.scheduling, self._lab, uuid)
        counted = ", ".join(f"{name} {count}" for name, count in counts.items())
        _screen.print(f"The scheduler took {host.name}: no host that fits has more free slots ({counted}).")
        await self._fleet()
        return host

    async def _fleet(self) -> None:
        """``sev-agent hosts``, as the operator sees it."""
        _screen.print("$ sev-agent hosts", style="bold")
        config = str(self._lab.scheduler_config)
        completed = await run_bounded(daemons.command("hosts", "--config", config), timeout=_BUILD_SECONDS)
        _screen.print(completed.stdout.decode().rstrip(), markup=False)

    async def _second(self, host: Host) -> None:
        """One more server anywhere: the fleet's count goes up by one and down again."""
        before = await self._used()
        second = await self._create("demo-second")
        two = await self._used()
        await _run(self._tenant, "server", "delete", "--wait", str(second))
        again = await self._used()
        used, total = await evidence.slots_used(self._lab, host)
        _screen.print(f"  encrypted guests of the fleet: {before}, then {two}, then {again}")
        _screen.print(f"  mem_encryption_used_num of {host.name}: [bold]{used}[/] of {total}")
        if [two - before, again - before] != [1, 0]:
            raise evidence.EvidenceMissing(f"the count went {before}, {two}, {again}; expected one more, and back")

    async def _used(self) -> int:
        counted = [await evidence.slots_used(self._lab, host) for host in evidence.hosts_with_slots(self._lab)]
        return sum(used for used, _ in counted)

    async def _wait_for_guest(self, host: Host, uuid: UUID) -> str:
        """The guest's console once it says that it is ready."""
        started = time.monotonic()
        with _screen.status("the guest boots (under emulation this takes a while)"):
            while time.monotonic() < started + _BOOT_SECONDS:
                text = await evidence.console(host, self._lab, uuid)
                if _READY in text:
                    _screen.print(f"Its own system was ready {time.monotonic() - started:.1f} s after its start.")
                    return text
                await asyncio.sleep(_POLL_SECONDS)
        raise GuestSilent(
            f"guest {uuid} did not say '{_READY}' within {_BOOT_SECONDS:g} s",
            remedy=f"see what it said: openstack console log show {uuid}",
        )


async def _run(client: StockClient, *arguments: str, show: bool = True) -> str:
    """Show the command, run it, and show what it prints."""
    _command(client, arguments)
    text = await client.run(*arguments, timeout=_BUILD_SECONDS)
    if show and text.strip():
        _screen.print(output.printable(text.rstrip()), markup=False)
    return text


def _command(client: StockClient, arguments: tuple[str, ...]) -> None:
    _screen.print(f"{client.user.name} $ openstack {shlex.join(arguments)}", style="bold", markup=False)


def _print_domain(found: evidence.DomainEvidence) -> None:
    pairs: dict[str, Any] = {
        "launch security": f"{found.launch_security}, policy {found.policy}",
        "machine": found.machine,
        "firmware": found.firmware,
        "memory locked": "yes" if found.locked else "no",
        **{f"iommu of {name}": "on" if iommu else "OFF" for name, iommu in found.devices.items()},
        **{f"firmware says {name}": value for name, value in found.launch_info.items()},
    }
    _screen.print(output.details(pairs))


def _chapter(title: str) -> None:
    _screen.print()
    _screen.print(Rule(title, align="left", style="cyan"))


def _say_what_next(lab: Lab, server: UUID, host: Host) -> None:
    is_default = lab.directory == DEFAULT_DIRECTORY
    where = "" if is_default else f" --dir {shlex.quote(str(lab.directory))}"
    _screen.print(
        f"""
The lab stays up. What to try next, as a tenant:
  . {lab.directory}/openrc.d/{TENANT}
  openstack server create --flavor {FLAVOR} --image {images.NAME} --wait another
  openstack server list
  openstack console log show {server}
  openstack server delete {server}
As the operator:
  . {lab.directory}/openrc
  sev-agent lab status{where}
  sev-agent hosts
  sev-agent instance list --host {host.name}
  virsh -c {shlex.quote(host.uri)} dumpxml {domain_name(server)}
And to stop it:
  sev-agent lab down{where}{"     (or: make down)" if is_default else ""}""",
        markup=False,
    )
