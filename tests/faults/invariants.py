"""What must hold at every quiet point, whatever went wrong before it."""

import asyncio
import re
import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

from sev_agent.compute.image_download import INCOMING_PREFIX
from sev_agent.compute.shelf import NAME as SHELF
from sev_agent.lab import processes
from sev_agent.lab.platform.namespace import EMULATOR
from sev_agent.lab.processes import MarkedProcess
from sev_agent.lab.service import GUESTS
from sev_agent.sev.generation import RESOURCE_CLASS
from tests.e2e.cloud import Cloud

QUIET_SECONDS = 30.0
"""How long the work that was accepted may take to come to its end on a busy machine."""

_LOOK_AGAIN = 0.2
_INTERFACES = Path("/sys/class/net")
_LIBVIRTS_TAPS = "vnet"
_OWNED_FILES = ("disk", "nvram", "config_drive", "definition", "console_log")


@dataclass(frozen=True, kw_only=True)
class Expected:
    """How things should stand: for each instance that was asked for the states it may have ended in.

    States are those of ``get_instance``, and ``deleted``. ``strangers`` are encrypted domains that run without the
    daemon's doing; ``undefined`` are instances whose domain somebody took away.
    """

    instances: Mapping[UUID, Collection[str]]
    strangers: Collection[UUID] = ()
    undefined: Collection[UUID] = ()


async def invariants(
    cloud: Cloud,
    instances: Mapping[UUID, Collection[str]],
    *,
    strangers: Collection[UUID] = (),
    undefined: Collection[UUID] = (),
    within: float = QUIET_SECONDS,
) -> dict[UUID, str]:
    """Wait until everything is as it should be, and return the state of each instance.

    Every accepted request ended in one running guest, or in one error with its reason, or stopped or deleted as asked;
    there is no orphan domain, process, file, tap device or allocation; Placement counts what libvirt runs, and a
    thorough comparison finds nothing to repair. Fails with all that is wrong after ``within`` seconds.
    """
    expected = Expected(instances=instances, strangers=strangers, undefined=undefined)
    deadline = time.monotonic() + within
    while True:
        states, wrong = await _look(cloud, expected)
        if not wrong:
            break
        assert time.monotonic() < deadline, "not so after {:g} s:\n  {}".format(within, "\n  ".join(wrong))
        await asyncio.sleep(_LOOK_AGAIN)
    found: Any = await cloud.ask("reconcile", dry_run=True)
    assert not found["differences"], found
    return states


async def _look(cloud: Cloud, expected: Expected) -> tuple[dict[UUID, str], list[str]]:
    views = {UUID(view["uuid"]): view for view in await cloud.ask("list_instances")}
    states = {uuid: str(views[uuid]["state"]) if uuid in views else "deleted" for uuid in expected.instances}
    active = {uuid for uuid, state in states.items() if state == "active"}
    kept = active | {uuid for uuid, state in states.items() if state == "stopped"}
    running = active | set(expected.strangers)
    if wrong := list(_instances(expected, views, states)):
        return states, wrong  # all else follows, and costs more to look at
    wrong = [
        *_differ("running domains", await cloud.domains(running=True), running),
        *_domains(await cloud.domains(), kept | running, expected),
        *await asyncio.to_thread(_processes, cloud, len(running)),
        *await asyncio.to_thread(_files, cloud, kept),
        *await _allocations(cloud, running, kept | running),
    ]
    if (held := cloud.firmware_slots_used()) != len(running):
        wrong.append(f"the firmware holds {held} slots for {len(running)} guests")
    return states, wrong


def _instances(expected: Expected, views: Mapping[UUID, Any], states: Mapping[UUID, str]) -> Iterable[str]:
    for uuid, state in states.items():
        view = views.get(uuid)
        if state not in expected.instances[uuid]:
            told = view["fault"] or view["steps"] if view else ""
            yield f"instance {uuid} is {state} and not {' or '.join(sorted(expected.instances[uuid]))}: {told}"
        if state == "error" and view and not (view["fault"]["code"] and view["fault"]["message"]):
            yield f"instance {uuid} is in error without a reason: {view['fault']}"
    for uuid in views.keys() - expected.instances.keys():
        yield f"nobody asked for instance {uuid}"


def _domains(found: set[UUID], wanted: set[UUID], expected: Expected) -> Iterable[str]:
    return _differ("domains", found - set(expected.undefined), wanted - set(expected.undefined))


def _differ(what: str, found: Collection[UUID], wanted: Collection[UUID]) -> Iterable[str]:
    surplus, missing = set(found) - set(wanted), set(wanted) - set(found)
    if surplus or missing:
        yield f"{what}: surplus {sorted(map(str, surplus))}, missing {sorted(map(str, missing))}"


def _processes(cloud: Cloud, wanted: int) -> Iterable[str]:
    """One QEMU for each guest that runs, and no other."""
    qemus = [each for each in processes.find(cloud.lab.directory, GUESTS) if _is_guest(each.pid)]
    names = Counter(_guest_name(each.command) for each in qemus)
    if len(names) != wanted or max(names.values(), default=1) > 1:
        yield f"{wanted} guests should run, and these processes do: {dict(names)}"
    yield from _taps(bridge_of(cloud), qemus)


def _taps(bridge: str, qemus: Iterable[MarkedProcess]) -> Iterable[str]:
    """A tap device on the bridge for each guest that has a NIC; no other there, and none anywhere that nobody holds."""
    ports = {path.name for path in (_INTERFACES / bridge / "brif").glob("*")}
    held = Counter(name for qemu in qemus for name in _held_taps(qemu.pid))
    nics = sum('"type":"tap"' in qemu.command for qemu in qemus)
    if ports != set(held) or held.total() != nics:
        yield f"{nics} guests have a tap device, they hold {dict(held)}, and the bridge has {sorted(ports)}"
    # Whose it was cannot be told any more: so no lab and no libvirt of this machine may have left one.
    for path in _INTERFACES.glob(f"{_LIBVIRTS_TAPS}*"):
        if (path / "tun_flags").exists() and not _has_carrier(path):
            yield f"no process holds the tap device {path.name}"


def _held_taps(pid: int) -> Iterable[str]:
    """The names of the tap devices that a process has open."""
    for link in Path(f"/proc/{pid}/fd").glob("*"):
        try:
            if str(link.readlink()) != "/dev/net/tun":
                continue
            entry = Path(f"/proc/{pid}/fdinfo/{link.name}").read_text()
        except OSError:
            continue
        yield from re.findall(r"^iff:\t(.+)$", entry, re.MULTILINE)


def _has_carrier(path: Path) -> bool:
    """Whether a process has the tap device ``path`` open; where it is down the kernel does not say, and it is not."""
    try:
        return (path / "carrier").read_text().strip() == "1"
    except FileNotFoundError:
        return True
    except OSError:
        return False


def bridge_of(cloud: Cloud) -> str:
    """The name of the bridge for this lab's guests; 15 characters are all that a device's may have."""
    return f"sf-{cloud.lab.directory.name[-8:]}"


def _is_guest(pid: int) -> bool:
    # The emulator's shim before QEMU has the same arguments; a probe of QEMU's capabilities has other ones.
    try:
        entry = Path("/proc") / str(pid)
        return b"guest=" in (entry / "cmdline").read_bytes() and (entry / "exe").readlink().name == EMULATOR.name
    except OSError:
        return False


def _guest_name(command: str) -> str:
    return command.partition("guest=")[2].partition(",")[0]


def _files(cloud: Cloud, kept: Collection[UUID]) -> Iterable[str]:
    for directory in (cloud.state_dir / "instances").iterdir():
        if directory.name == SHELF:
            yield f"records were set aside: {[path.name for path in directory.iterdir()]}"
            continue
        names = {path.name for path in directory.iterdir()} - {"instance.json"}
        try:
            uuid = UUID(directory.name)
        except ValueError:
            yield f"{directory} is no instance's"
            continue
        paths = cloud.files(uuid)
        if not paths.record.exists():
            yield f"{directory} has no record"
        owned = {getattr(paths, name).name for name in _OWNED_FILES} if uuid in kept else set()
        if uuid in kept and (missing := owned - names):
            yield f"{directory} lacks {sorted(missing)}"
        if left := names - owned - ({paths.kernel.name} if uuid in kept else set()):
            yield f"{directory} still has {sorted(left)}"
    for path in cloud.images_dir.glob(f"{INCOMING_PREFIX}*"):
        yield f"{path} is half an image"


async def _allocations(cloud: Cloud, running: Collection[UUID], holders: Collection[UUID]) -> list[str]:
    held: dict[UUID, set[str]] = {}
    for provider in await cloud.placement.tree((await cloud.root()).uuid):
        _, allocations = await cloud.placement.provider_allocations(provider.uuid)
        for consumer, amounts in allocations.items():
            held.setdefault(consumer, set()).update(amounts)
    wrong = [
        *_differ("consumers of slots", {uuid for uuid in held if RESOURCE_CLASS in held[uuid]}, running),
        *_differ("consumers", held, holders),
    ]
    if (used := await cloud.slots_used()) != len(running):
        wrong.append(f"Placement counts {used} slots for {len(running)} guests")
    return wrong
