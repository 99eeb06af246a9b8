"""Operations and faults in any order, three hundred of them; at every quiet point everything is as it should be."""

import asyncio
import dataclasses
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import pytest

from sev_agent.domain.identity import domain_name
from sev_agent.messaging.broker import BrokerUnavailable
from sev_agent.openstack.placement import ConcurrentUpdate, Full
from sev_agent.sev.generation import RESOURCE_CLASS
from tests.e2e.waiting import eventually
from tests.faults.conftest import World
from tests.faults.invariants import QUIET_SECONDS
from tests.faults.services import Leaned

pytestmark = pytest.mark.asyncio(loop_scope="session")

OPERATIONS = 300
"""Steps that did something; what found nothing to do, such as a stop where no guest is, counts for nothing."""

MOST_IDLE = 300
STEPS_TO_QUIET = 15
MOST_GUESTS = 5
"""One less than there are slots, so that most of what is asked for can be done."""

_PAUSE_SECONDS = 0.3
_BROKER_SECONDS = 30.0
_MINUTE_SECONDS = 70.0
_AT_REST = {"active", "stopped", "error"}


@dataclass(kw_only=True)
class Walk:
    """Where the walk is.

    ``undefined`` are instances whose domain was taken away; ``is_edited`` says that somebody wrote to Placement.
    ``trace`` has the steps that did something, ``idle`` counts the others.
    """

    world: World
    chance: random.Random
    undefined: set[UUID] = field(default_factory=set)
    is_edited: bool = False
    trace: list[str] = field(default_factory=list)
    idle: int = 0

    @property
    def guests(self) -> list[UUID]:
        """The instances that nobody asked to delete."""
        return [uuid for uuid, states in self.world.asked.items() if "deleted" not in states]

    async def step(self) -> None:
        """One operation or fault, chosen by chance, if there is something to do for it."""
        kinds, weights = zip(*_STEPS.items(), strict=True)
        (kind,) = self.chance.choices(kinds, [weight for weight, _ in weights])
        _, act = _STEPS[kind]
        if not await act(self):
            self.idle += 1
            self.world.tally.idle += 1
            return
        self.trace.append(kind)
        self.world.tally.operations += 1
        await asyncio.sleep(self.chance.uniform(0, _PAUSE_SECONDS))

    async def rest(self) -> None:
        """A quiet point: every fault is over, and everything must be as it should be."""
        await self.world.heal()
        await self.world.recorded()
        within = QUIET_SECONDS
        if self.is_edited:
            # What the minutely comparison would repair within the minute; it leaves alone what is being worked on, so
            # that where something still is, the minute has to be waited for.
            await eventually(self._at_rest, within=QUIET_SECONDS, what="no instance is being worked on")
            await self.world.cloud.ask("reconcile", dry_run=False)
            within += _MINUTE_SECONDS
            self.is_edited = False
        states = await self.world.hold(undefined=self.undefined, within=within)
        self.world.asked = {uuid: {state} for uuid, state in states.items() if state != "deleted"}
        self.undefined &= self.world.asked.keys()

    async def _at_rest(self) -> bool:
        return {view["state"] for view in await self.world.cloud.ask("list_instances")} <= _AT_REST

    def one(self) -> UUID | None:
        guests = self.guests
        return self.chance.choice(guests) if guests else None

    def running(self) -> UUID | None:
        """A guest that ran at the last quiet point, and has a domain."""
        guests = [uuid for uuid in self.guests if "active" in self.world.asked[uuid] and uuid not in self.undefined]
        return self.chance.choice(guests) if guests else None

    async def cast(self, method: str, **arguments: Any) -> None:
        """Send a request, as often as it takes until the broker has it: so it may come more than once."""
        async with asyncio.timeout(_BROKER_SECONDS):
            while True:
                try:
                    await self.world.cloud.broker.wait_up(_BROKER_SECONDS)
                    await self.world.cloud.cast(method, **arguments)
                except BrokerUnavailable:
                    await self._revive()
                else:
                    return

    async def _revive(self) -> None:
        await self.world.services.thaw(Leaned.BROKER)
        await self.world.services.start(Leaned.BROKER)


Act = Callable[[Walk], Awaitable[bool]]
"""One step; false where there was nothing to do for it."""


async def test_random_walk(world: World, fault_seed: int) -> None:
    """Three hundred steps by chance that each did something; at every quiet point among them the invariants hold."""
    await world.have(health__interval=5)
    walk = Walk(world=world, chance=random.Random(fault_seed))
    try:
        while len(walk.trace) < OPERATIONS:
            quiet = len(walk.trace) + STEPS_TO_QUIET
            while len(walk.trace) < quiet:
                await walk.step()
                assert walk.idle <= MOST_IDLE
            await walk.rest()
    finally:
        print(f"seed {fault_seed}, steps: {', '.join(walk.trace)}")  # noqa: T201 - pytest shows it where it failed


async def _build(walk: Walk) -> bool:
    if len(walk.guests) >= MOST_GUESTS:
        return await _delete(walk)
    request = walk.world.request()
    walk.world.asked[UUID(request["uuid"])] = {"active", "error"}
    await walk.cast("build_and_run_instance", instance=request)
    return True


async def _build_twice(walk: Walk) -> bool:
    if len(walk.guests) >= MOST_GUESTS:
        return False
    request = walk.world.request()
    walk.world.asked[UUID(request["uuid"])] = {"active", "error"}
    for _ in range(2):
        await walk.cast("build_and_run_instance", instance=request)
    return True


async def _delete(walk: Walk) -> bool:
    if (uuid := walk.one()) is None:
        return False
    walk.world.asked[uuid] = {"deleted"}
    await walk.cast("terminate_instance", instance_uuid=str(uuid))
    return True


def _power(method: str, **arguments: str) -> Act:
    async def ask(walk: Walk) -> bool:
        if (uuid := walk.one()) is None:
            return False
        walk.world.asked[uuid] |= {"active", "stopped"} if walk.world.asked[uuid] != {"error"} else set()
        await walk.cast(method, instance_uuid=str(uuid), **arguments)
        return True

    return ask


def _virsh(command: str, *options: str) -> Act:
    """Behind the daemon's back. libvirt may refuse it, or be away just now; then nothing was done."""

    async def act(walk: Walk) -> bool:
        if (uuid := walk.running()) is None:
            return False
        walk.world.asked[uuid] |= {"active", "stopped"}
        if command == "undefine":
            walk.undefined.add(uuid)
        command_line = walk.world.cloud.virsh(command, domain_name(uuid), *options)
        return (await asyncio.wait_for(command_line, _BROKER_SECONDS)).status == 0

    return act


async def _edit_allocation(walk: Walk) -> bool:
    """An allocation that somebody takes away, or doubles in size."""
    uuid = walk.one()
    held = await walk.world.cloud.placement.allocation(uuid) if uuid is not None else None
    if uuid is None or held is None:
        return False
    wrong = {
        provider: {name: amount * 2 if name != RESOURCE_CLASS else amount for name, amount in amounts.items()}
        for provider, amounts in held.resources.items()
    }
    spoiled = dataclasses.replace(held, resources=walk.chance.choice([{}, wrong]))
    walk.is_edited = True
    try:
        await walk.world.cloud.placement.put_allocation(uuid, spoiled)
    except (ConcurrentUpdate, Full):  # the daemon was quicker; or it was doubled before, and a guest may not have more
        return False
    return True


async def _kill_daemon(walk: Walk) -> bool:
    walk.world.note()
    if walk.world.agent.is_running:
        await walk.world.agent.kill()
    await walk.world.agent.launch(**walk.world.usual, health__interval=5)
    return True


async def _restart_daemon(walk: Walk) -> bool:
    await walk.world.works()
    await walk.world.restart(health__interval=5)
    return True


def _kill(service: Leaned) -> Act:
    async def kill(walk: Walk) -> bool:
        walk.world.note()
        await walk.world.services.kill(service)
        await asyncio.sleep(walk.chance.uniform(0, _PAUSE_SECONDS))
        await walk.world.services.start(service)
        return True

    return kill


def _freeze(service: Leaned) -> Act:
    async def freeze(walk: Walk) -> bool:
        walk.world.note()
        await walk.world.services.freeze(service)
        await asyncio.sleep(1 + walk.chance.uniform(0, _PAUSE_SECONDS))
        await walk.world.services.thaw(service)
        return True

    return freeze


async def _cut(walk: Walk) -> bool:
    walk.world.note()
    walk.chance.choice(walk.world.proxies.all).cut()
    return True


_STEPS: Mapping[str, tuple[int, Act]] = {
    "build": (18, _build),
    "build twice": (4, _build_twice),
    "delete": (8, _delete),
    "start": (8, _power("start_instance")),
    "stop": (7, _power("stop_instance")),
    "soft reboot": (4, _power("reboot_instance", reboot_type="SOFT")),
    "hard reboot": (5, _power("reboot_instance", reboot_type="HARD")),
    "virsh destroy": (6, _virsh("destroy")),
    "virsh start": (6, _virsh("start")),
    "virsh undefine": (1, _virsh("undefine", "--keep-nvram")),
    "edit allocation": (3, _edit_allocation),
    "kill daemon": (4, _kill_daemon),
    "restart daemon": (1, _restart_daemon),
    "kill libvirtd": (2, _kill(Leaned.LIBVIRT)),
    "kill RabbitMQ": (1, _kill(Leaned.BROKER)),
    "kill Placement": (2, _kill(Leaned.PLACEMENT)),
    "stop libvirtd": (2, _freeze(Leaned.LIBVIRT)),
    "stop RabbitMQ": (2, _freeze(Leaned.BROKER)),
    "stop Placement": (2, _freeze(Leaned.PLACEMENT)),
    "cut connections": (8, _cut),
}
"""How often each step is taken, relative to the others."""
