"""The changes of a guest's power that can be asked for, and the instances that they are asked of."""

import asyncio

from sev_agent.compute.record import Record, State
from tests.requests import record
from tests.unit.compute.scripted_host import PATIENCE, Host

START, STOP, SOFT, HARD = State.STARTING, State.STOPPING, State.REBOOTING, State.REBOOTING_HARD

CHANGES = [
    (State.STOPPED, START, ["start"], State.ACTIVE, "start"),
    (State.ACTIVE, STOP, ["stop"], State.STOPPED, "stop"),
    (State.ACTIVE, SOFT, ["halt", "restart"], State.ACTIVE, "reboot"),
    (State.ACTIVE, HARD, ["halt hard", "restart"], State.ACTIVE, "reboot"),
    (State.STOPPED, HARD, ["halt hard", "restart"], State.ACTIVE, "reboot"),
]
"""From which state, by which, in which steps, to which; and what it is called."""


def has(host: Host, state: State) -> Record:
    """An instance that stands in ``state``, in libvirt too."""
    known = record(state)
    host.store.save(known)
    if state is State.ACTIVE:
        host.power.running.add(known.uuid)
    return known


async def begun(host: Host) -> str:
    async with asyncio.timeout(PATIENCE):
        return await host.power.begun.get()
