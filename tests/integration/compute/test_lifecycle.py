"""Starts, stops, reboots and what guests do by themselves, as Placement counts them: from request to allocation."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import aiohttp
import pytest

from sev_agent.compute.record import State
from sev_agent.config import PlacementSection
from sev_agent.hypervisor.errors import HypervisorUnavailable
from sev_agent.openstack.identity import NoIdentity
from sev_agent.openstack.placement import Placement
from tests.daemon_parts import Daemon
from tests.integration.compute.conftest import FULL_SIZE, SLOTS, merged, resources
from tests.libvirt_host import SEV, agent_metadata, domain_xml, running_host
from tests.libvirt_host import Host as Libvirt
from tests.requests import instance, record

PATIENCE = 60.0
DISK = {"DISK_GB": 1}
HOLD = 0.5
"""Seconds that a guest which ended itself is left alone here."""

START, STOP, SOFT, HARD = State.STARTING, State.STOPPING, State.REBOOTING, State.REBOOTING_HARD
CHANGES = [
    (State.STOPPED, START, State.ACTIVE),
    (State.ACTIVE, STOP, State.STOPPED),
    (State.ACTIVE, SOFT, State.ACTIVE),
    (State.ACTIVE, HARD, State.ACTIVE),
    (State.STOPPED, HARD, State.ACTIVE),
]


@dataclass
class Machine:
    """What outlives a daemon: libvirt, Placement, the disk. ``writes`` are the requests that changed Placement."""

    directory: Path
    name: str
    libvirt: Libvirt
    placement: Placement
    settings: PlacementSection
    writes: list[str] = field(default_factory=list)
    daemon: Daemon = field(init=False)

    async def boot_daemon(self, *, shutdown_timeout: float = 10) -> Daemon:
        """A daemon that knows what runs, and takes up what is unfinished."""
        self.daemon = Daemon(
            self.directory,
            self.name,
            self.libvirt,
            self.placement,
            self.settings,
            shutdown_timeout=shutdown_timeout,
            hold=HOLD,
        )
        await self.daemon.accounting.reconcile(resources())
        self.daemon.instances.resume()
        self.daemon.host_boot.on_registered()
        return self.daemon

    async def has(self, state: State, *, auto_start: bool = False) -> UUID:
        """An instance in ``state``, counted as it should be."""
        known = record(State.BUILDING, instance=instance(auto_start=auto_start))
        security = domain_xml(known.uuid, f"guest-{known.uuid}", security=SEV, extra=agent_metadata(known.uuid))
        self.daemon.store.save(known)
        await self.daemon.accounting.claim(known)
        await self.libvirt.domains.start(await self.libvirt.domains.define(security))
        if state is State.STOPPED:
            await self.libvirt.domains.destroy(known.uuid)
        self.daemon.store.save(known.with_(state=state))
        self.daemon.accounting.mark(known.uuid)
        await self.eventually_holds(known.uuid, FULL_SIZE if state is State.ACTIVE else DISK)
        return known.uuid

    async def runs(self, uuid: UUID) -> bool:
        found = await self.libvirt.domains.state(uuid)
        return found is not None and found.is_active

    async def held(self, uuid: UUID) -> dict[str, int]:
        allocation = await self.placement.allocation(uuid)
        return {} if allocation is None else merged(allocation.resources)

    async def eventually_holds(self, uuid: UUID, wanted: dict[str, int]) -> None:
        async with asyncio.timeout(PATIENCE):
            while await self.held(uuid) != wanted:  # noqa: ASYNC110 - Placement rings no bell
                await asyncio.sleep(0.02)

    async def is_right(self, uuid: UUID, then: State) -> None:
        """The invariant: record, libvirt and Placement say the same, and nothing is under way."""
        assert self.daemon.state(uuid) is then
        assert await self.runs(uuid) is (then is State.ACTIVE)
        await self.eventually_holds(uuid, FULL_SIZE if then is State.ACTIVE else DISK)


@pytest.fixture
async def machine(placement_url: str, session: aiohttp.ClientSession, tmp_path: Path) -> AsyncIterator[Machine]:
    """A host with two slots and a daemon."""
    writes: list[str] = []

    def note(service: str, method: str, status: int, seconds: float) -> None:
        del service, seconds
        if method != "GET":
            writes.append(f"{method} {status}")

    boot_id = tmp_path / "platform/proc/sys/kernel/random/boot_id"
    boot_id.parent.mkdir(parents=True)
    boot_id.write_text("first\n")
    settings = PlacementSection(endpoint=placement_url)
    placement = Placement(session, NoIdentity(), settings, on_request=note)
    async with running_host() as libvirt:
        assert await libvirt.next_change()
        machine = Machine(tmp_path, f"host-{uuid4()}", libvirt, placement, settings, writes)
        await machine.boot_daemon()
        yield machine
        await machine.daemon.end()
        for guest in await libvirt.domains.guests():
            await libvirt.domains.destroy(guest.uuid)
            await libvirt.domains.undefine(guest.uuid)


@pytest.mark.parametrize(("state", "to", "then"), CHANGES)
async def test_change(machine: Machine, state: State, to: State, then: State) -> None:
    """At the very end of a start, a stop or a reboot Placement counts what runs then."""
    uuid = await machine.has(state)

    await machine.daemon.instances.change_power(uuid, to, "req-2")
    ended = await machine.daemon.settled(uuid)

    assert await machine.held(uuid) == (FULL_SIZE if then is State.ACTIVE else DISK)
    assert ended.fault is None
    await machine.is_right(uuid, then)


@pytest.mark.parametrize("to", [SOFT, HARD])
async def test_reboot_writes_nothing(machine: Machine, to: State) -> None:
    """A reboot keeps its slot: not one request changes anything in Placement, then or after it."""
    uuid = await machine.has(State.ACTIVE)
    await machine.daemon.accounting.reconcile(resources())
    machine.writes.clear()

    await machine.daemon.instances.change_power(uuid, to, "req-2")
    await machine.daemon.settled(uuid)
    await asyncio.sleep(2 * HOLD)
    await machine.daemon.accounting.reconcile(resources())

    assert machine.writes == []
    assert "stop.end" not in machine.daemon.ear.heard
    await machine.is_right(uuid, State.ACTIVE)


@pytest.mark.parametrize("to", [START, HARD])
async def test_no_slot(machine: Machine, to: State) -> None:
    """Without a slot nothing starts and the reason stands in the record; with one that comes free it does."""
    uuid = await machine.has(State.STOPPED)
    others = [await machine.has(State.ACTIVE) for _ in range(SLOTS)]

    await machine.daemon.instances.change_power(uuid, to, "req-2")
    refused = await machine.daemon.settled(uuid)

    assert refused.fault is not None
    assert refused.fault.code == "placement.full"
    assert "every encryption slot of this host is taken" in refused.fault.message
    await machine.is_right(uuid, State.STOPPED)
    await machine.daemon.instances.change_power(others[0], STOP, "req-3")
    await machine.daemon.settled(others[0])
    await machine.daemon.instances.change_power(uuid, to, "req-4")
    await machine.daemon.settled(uuid)
    await machine.is_right(uuid, State.ACTIVE)


async def test_two_starts_for_one_slot(machine: Machine) -> None:
    """Of two guests that want the last slot at once, one starts and the other is refused."""
    pair = [await machine.has(State.STOPPED) for _ in range(2)]
    for _ in range(SLOTS - 1):
        await machine.has(State.ACTIVE)

    await asyncio.gather(*(machine.daemon.instances.change_power(uuid, START, f"req-{uuid}") for uuid in pair))
    ended = [await machine.daemon.settled(uuid) for uuid in pair]

    assert sorted(each.state for each in ended) == [State.ACTIVE, State.STOPPED]
    for each in ended:
        await machine.is_right(each.uuid, each.state)


async def test_guest_switches_itself_off(machine: Machine) -> None:
    """Its record says stopped and its slot is free, once it is plain that it does not start again."""
    uuid = await machine.has(State.ACTIVE)

    await machine.libvirt.domains.shutdown(uuid)
    assert await machine.held(uuid) == FULL_SIZE

    await machine.eventually_holds(uuid, DISK)
    await machine.is_right(uuid, State.STOPPED)
    assert "stop.end" in machine.daemon.ear.heard


async def test_guest_reboots_as_a_pair(machine: Machine) -> None:
    """A guest that stops and starts again at once flaps neither the count nor its record, also in a comparison."""
    uuid = await machine.has(State.ACTIVE)
    await machine.daemon.accounting.reconcile(resources())
    machine.writes.clear()

    await machine.libvirt.domains.shutdown(uuid)
    async with asyncio.timeout(PATIENCE):
        while not machine.daemon.events.holds(uuid):  # noqa: ASYNC110 - an event of libvirt
            await asyncio.sleep(0.005)
    outcome = await machine.daemon.accounting.reconcile(resources())
    assert machine.daemon.state(uuid) is State.ACTIVE
    await machine.libvirt.domains.start(uuid)
    await asyncio.sleep(2 * HOLD)

    assert outcome.is_clean
    assert machine.writes == []
    assert machine.daemon.ear.heard == []
    await machine.is_right(uuid, State.ACTIVE)


async def test_destroyed_by_others(machine: Machine) -> None:
    """virsh destroy is in Placement before any pause for a reboot would be over."""
    uuid = await machine.has(State.ACTIVE)

    await machine.libvirt.domains.destroy(uuid)
    async with asyncio.timeout(HOLD):
        await machine.eventually_holds(uuid, DISK)

    await machine.is_right(uuid, State.STOPPED)


Break = Callable[[Machine], None]


def _at(name: str, *, after: bool, power: bool = False) -> Break:
    """A daemon that goes no further than the operation ``name`` of libvirt or the accounting: before or after it."""

    def arm(machine: Machine) -> None:
        owner: Any = machine.daemon.accounting if power else machine.libvirt.domains
        operation: Callable[..., Awaitable[Any]] = getattr(owner, name)

        async def stuck(*given: Any) -> Any:
            setattr(owner, name, operation)
            if after:
                await operation(*given)
            raise HypervisorUnavailable("the daemon is no more")

        setattr(owner, name, stuck)

    return arm


CRASHES = [
    *((START, _at("claim", after=after, power=True), f"claim-{after}") for after in (False, True)),
    *((START, _at("start", after=after), f"start-{after}") for after in (False, True)),
    *((STOP, _at("shutdown", after=after), f"shutdown-{after}") for after in (False, True)),
    *((STOP, _at("state", after=after), f"state-{after}") for after in (False, True)),
    *((SOFT, _at("shutdown", after=after), f"shutdown-{after}") for after in (False, True)),
    *((SOFT, _at("start", after=after), f"start-{after}") for after in (False, True)),
    *((HARD, _at("destroy", after=after), f"destroy-{after}") for after in (False, True)),
    *((HARD, _at("start", after=after), f"start-{after}") for after in (False, True)),
]


@pytest.mark.parametrize(("to", "crash", "where"), CRASHES, ids=[f"{to}-{where}" for to, _, where in CRASHES])
async def test_daemon_dies(machine: Machine, to: State, crash: Break, where: str) -> None:
    """Wherever a daemon dies in an operation, the next one ends it, and all counts are right."""
    del where
    uuid = await machine.has(State.STOPPED if to is START else State.ACTIVE)
    crash(machine)
    await machine.daemon.instances.change_power(uuid, to, "req-2")
    await machine.daemon.settled(uuid)
    assert machine.daemon.state(uuid).is_unfinished
    await machine.daemon.end()

    daemon = await machine.boot_daemon()
    await daemon.settled(uuid)

    await machine.is_right(uuid, State.STOPPED if to is STOP else State.ACTIVE)


async def test_rebooted_guest_is_not_stopped_again(machine: Machine) -> None:
    """A daemon that died after the second half of a reboot leaves the guest that it started alone."""
    uuid = await machine.has(State.ACTIVE)
    _at("start", after=True)(machine)
    await machine.daemon.instances.change_power(uuid, SOFT, "req-2")
    await machine.daemon.settled(uuid)
    await machine.daemon.end()
    while not machine.libvirt.events.empty():
        machine.libvirt.events.get_nowait()

    daemon = await machine.boot_daemon()
    await daemon.settled(uuid)

    assert machine.libvirt.events.empty()
    await machine.is_right(uuid, State.ACTIVE)


async def test_delete_of_a_guest_that_hangs(machine: Machine) -> None:
    """A deletion ends a stop that waits, and leaves neither a domain nor an allocation."""
    uuid = await machine.has(State.ACTIVE)
    pressed = asyncio.Event()

    async def ignored(uuid: UUID) -> None:
        del uuid
        pressed.set()

    machine.libvirt.domains.shutdown = ignored  # type: ignore[method-assign]
    await machine.daemon.instances.change_power(uuid, STOP, "req-2")
    async with asyncio.timeout(PATIENCE):
        await pressed.wait()

    await machine.daemon.instances.terminate(uuid, "req-3")
    await machine.daemon.settled(uuid)

    assert machine.daemon.state(uuid) is State.DELETED
    assert await machine.libvirt.domains.state(uuid) is None
    assert await machine.held(uuid) == {}


async def test_host_restart(machine: Machine) -> None:
    """Of the guests marked so the oldest are started again, as many as there are slots; the rest say why not."""
    stopped = await machine.has(State.STOPPED, auto_start=True)
    first, second = [await machine.has(State.ACTIVE, auto_start=True) for _ in range(SLOTS)]
    late = record(State.ACTIVE, instance=instance(auto_start=True))
    machine.daemon.store.save(late)  # it ran as well, before the limit was lowered
    await machine.libvirt.domains.define(
        domain_xml(late.uuid, f"guest-{late.uuid}", security=SEV, extra=agent_metadata(late.uuid))
    )
    await machine.daemon.end()
    for uuid in (first, second):
        await machine.libvirt.domains.destroy(uuid)
    (machine.directory / "platform/proc/sys/kernel/random/boot_id").write_text("second\n")

    daemon = await machine.boot_daemon()
    async with asyncio.timeout(PATIENCE):
        while "start.error" not in daemon.ear.heard:  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.02)

    for uuid in (first, second):
        await machine.is_right(uuid, State.ACTIVE)
    await machine.is_right(late.uuid, State.STOPPED)
    assert (await daemon.settled(late.uuid)).fault is not None
    await machine.is_right(stopped, State.STOPPED)
    await daemon.end()
    await machine.libvirt.domains.destroy(first)
    again = await machine.boot_daemon()
    await asyncio.sleep(0.1)
    assert again.state(first) is State.STOPPED, "the host was not restarted a second time"
