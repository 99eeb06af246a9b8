"""``sev-agent demo``: from a bare machine to a running encrypted guest, with the evidence."""

import asyncio
import shlex
import time
from collections.abc import Mapping
from typing import Final
from uuid import UUID, uuid4

import typer
from rich.console import Console
from rich.rule import Rule

from sev_agent.cli import output
from sev_agent.cli.following import follow_build, follow_deletion
from sev_agent.cli.lab import Cache, Directory, bring_up
from sev_agent.cli.remote import connected
from sev_agent.domain.identity import domain_name
from sev_agent.errors import SevAgentError
from sev_agent.lab import evidence
from sev_agent.lab.cloud import DEFAULT_DIRECTORY, Lab
from sev_agent.lab.host import Host

app = typer.Typer(add_completion=False)

_READY: Final = "sev-agent-guest: ready"
_GUEST_LINE: Final = "sev-agent-guest: "
_BOOT_SECONDS: Final = 240.0
_BUILD_SECONDS: Final = 300.0
_POLL_SECONDS: Final = 0.5
_screen: Final = Console(highlight=False, soft_wrap=True)


class GuestSilent(SevAgentError):
    """The guest did not say that it is ready."""

    code = "demo.guest_silent"


@app.command()
def demo(directory: Directory = DEFAULT_DIRECTORY, cache: Cache = None) -> None:
    """Bring a lab up, boot an encrypted guest in it, and show the evidence. Exit status 0 only if all of it holds."""
    started = time.monotonic()
    with output.errors():
        lab = bring_up(directory, cache, lambda lab: lab.up())
        guest = asyncio.run(_show(lab))
    _screen.print(f"\nAll of it holds, after {time.monotonic() - started:.0f} s.", style="bold green")
    _say_what_next(lab, guest)


async def _show(lab: Lab) -> UUID:
    """Show it all; the value is the guest that stays."""
    host = lab.hosts[0]
    _chapter("The image, tagged as the method asks (Glance)")
    image = await evidence.image(lab, host)
    wanted = {name: value for name, value in image.properties.items() if name.startswith("hw_")}
    _screen.print(output.details({"image": f"{image.name} {image.id}", **wanted}))

    _chapter("The count before (Placement)")
    before = await _count(lab, host)

    _chapter(f"One encrypted guest, requested over RabbitMQ of host {host.name}")
    uuid = await _build(lab, host, "demo-guest")
    text = await _wait_for_guest(lab, host, uuid)

    _chapter("What libvirt says of the running domain")
    found = await evidence.domain_evidence(host, uuid)
    evidence.check(found)
    _print_domain(found)

    _chapter("The count while it runs, and after a second guest came and went (Placement)")
    after = await _count(lab, host)
    second = await _build(lab, host, "demo-second")
    two = await _count(lab, host)
    await _delete(lab, host, second)
    again = await _count(lab, host)
    if [after - before, two - before, again - before] != [1, 2, 1]:
        raise evidence.EvidenceMissing(
            f"the count went {before}, {after}, {two}, {again}; expected one more each guest"
        )

    _chapter("What the daemon says of itself (metrics)")
    for line in await evidence.metrics(lab, host):
        _screen.print(f"  {line}", markup=False)

    _chapter("What the guest printed on its console")
    for line in text.splitlines():
        if _GUEST_LINE in line:
            _screen.print(f"  {line.strip()}", markup=False)
    if f"{_GUEST_LINE}uuid {uuid}" not in text:
        raise GuestSilent(f"the guest did not print its own UUID {uuid}")
    return uuid


async def _build(lab: Lab, host: Host, name: str) -> UUID:
    uuid = uuid4()
    instance = {
        "uuid": str(uuid),
        "name": name,
        "flavor": {
            "name": "demo",
            "vcpus": 1,
            "memory_mb": 256,
            "root_gb": 1,
            "extra_specs": {"hw:mem_encryption": "True"},
        },
        "image": {"id": str(lab.image_id)},
        "networks": [{"type": "user"}],
    }
    async with connected(lab.rabbit_url, host.name) as remote:
        await follow_build(remote, instance, limit=_BUILD_SECONDS, screen=_screen)
    return uuid


async def _delete(lab: Lab, host: Host, uuid: UUID) -> None:
    async with connected(lab.rabbit_url, host.name) as remote:
        await follow_deletion(remote, str(uuid), limit=_BUILD_SECONDS)
    _screen.print(f"{host.name} has deleted instance {uuid}.")


async def _wait_for_guest(lab: Lab, host: Host, uuid: UUID) -> str:
    """The guest's console once it says that it is ready."""
    deadline = time.monotonic() + _BOOT_SECONDS
    started = time.monotonic()
    with _screen.status("the guest boots (under emulation this takes a while)"):
        while time.monotonic() < deadline:
            text = await evidence.console(host, lab, uuid)
            if _READY in text:
                _screen.print(f"Its own system was ready {time.monotonic() - started:.1f} s after its start.")
                return text
            await asyncio.sleep(_POLL_SECONDS)
    raise GuestSilent(
        f"guest {uuid} did not say '{_READY}' within {_BOOT_SECONDS:g} s",
        remedy=f"see what it said: sev-agent instance console {uuid}",
    )


async def _count(lab: Lab, host: Host) -> int:
    used, total = await evidence.slots_used(lab, host)
    _screen.print(f"  mem_encryption_used_num of {host.name}: [bold]{used}[/] of {total}")
    return used


def _print_domain(found: evidence.DomainEvidence) -> None:
    pairs: Mapping[str, str] = {
        "launch security": f"{found.launch_security}, policy {found.policy}",
        "machine": found.machine,
        "firmware": found.firmware,
        "memory locked": "yes" if found.locked else "no",
        **{f"iommu of {name}": "on" if iommu else "OFF" for name, iommu in found.devices.items()},
        **{f"firmware says {name}": value for name, value in found.launch_info.items()},
    }
    _screen.print(output.details(dict(pairs)))


def _chapter(title: str) -> None:
    _screen.print()
    _screen.print(Rule(title, align="left", style="cyan"))


def _say_what_next(lab: Lab, guest: UUID) -> None:
    where = "" if lab.directory == DEFAULT_DIRECTORY else f" --dir {shlex.quote(str(lab.directory))}"
    _screen.print(
        f"""
The lab stays up. What to try next:
  . {lab.directory}/openrc
  sev-agent lab status{where}
  sev-agent instance list
  sev-agent instance console {guest}
  virsh dumpxml {domain_name(guest)}
  sev-agent instance build --network user --image {lab.image_id}
  sev-agent instance delete {guest}
And to stop it:
  sev-agent lab down{where}     (or: make down)""",
        markup=False,
    )
