"""The power button, on guests of libvirt's test driver."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import cast
from uuid import UUID, uuid4

import pytest

from sev_agent.compute import power as power_module
from sev_agent.compute.accounting import Accounting
from sev_agent.compute.admission import Admission
from sev_agent.compute.build import DefinitionLost
from sev_agent.compute.power import Power
from sev_agent.compute.record import Record, State
from sev_agent.errors import Unavailable
from sev_agent.hypervisor.errors import HypervisorError, HypervisorUnavailable
from sev_agent.hypervisor.events import Lifecycle
from sev_agent.openstack.placement import Full
from tests.libvirt_host import SEV, Host, agent_metadata, domain_xml, running_host
from tests.requests import record

Shutdown = Callable[[UUID], Awaitable[None]]


class ScriptedAccounting:
    """Notes what is claimed and given back; ``fault`` refuses all of it."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.fault: Exception | None = None

    async def claim(self, late: Record) -> None:
        del late
        self._do("claim")

    async def rest(self, late: Record) -> None:
        del late
        self._do("rest")

    def _do(self, what: str) -> None:
        if self.fault is not None:
            raise self.fault
        self.done.append(what)


@dataclass
class Button:
    """A guest and its power button; libvirt's events reach it."""

    libvirt: Host
    accounting: ScriptedAccounting
    power: Power
    record: Record
    pressed: list[UUID] = field(default_factory=list)

    async def runs(self) -> bool:
        return await self.power.runs(self.record.uuid)

    def press(self, shutdown: Shutdown) -> None:
        """Have the guest react to its button by ``shutdown``; the test driver's own guests end at once."""

        async def pressed(uuid: UUID) -> None:
            self.pressed.append(uuid)
            await shutdown(uuid)

        self.libvirt.domains.shutdown = pressed  # type: ignore[method-assign]


async def _lost(_: Record) -> None:
    raise DefinitionLost("it is nowhere")


async def ignored(_: UUID) -> None:
    """A guest that does not notice its button."""


@pytest.fixture
async def button() -> AsyncIterator[Button]:
    """The guest runs, and has five seconds to shut down."""
    async with running_host() as libvirt:
        assert await libvirt.next_change()
        known = record(State.ACTIVE)
        await libvirt.domains.start(
            await libvirt.domains.define(
                domain_xml(known.uuid, f"guest-{known.uuid}", security=SEV, extra=agent_metadata(known.uuid))
            )
        )
        accounting = ScriptedAccounting()
        power = Power(
            domains=libvirt.domains,
            accounting=cast("Accounting", accounting),
            admission=Admission(overhead_mb=0),
            redefine=_lost,
            shutdown_timeout=5,
        )

        async def listen() -> None:
            while True:
                event = await libvirt.events.get()
                if event.event is Lifecycle.STOPPED:
                    power.on_stopped(event.uuid)

        listening = asyncio.create_task(listen())
        yield Button(libvirt, accounting, power, known)
        listening.cancel()
        await asyncio.wait({listening})
        await libvirt.domains.undefine(known.uuid)


def impatient(button: Button, seconds: float = 0.2) -> Power:
    return Power(
        admission=Admission(overhead_mb=0),
        domains=button.libvirt.domains,
        accounting=cast("Accounting", button.accounting),
        redefine=_lost,
        shutdown_timeout=seconds,
    )


async def test_stop(button: Button) -> None:
    """A guest that heeds its button is stopped by it, then its slot is given back."""
    await button.power.stop(button.record)

    assert not await button.runs()
    assert button.accounting.done == ["rest"]


async def test_stop_of_a_guest_that_takes_a_while(button: Button) -> None:
    """libvirt's event, not the next look, tells that the guest has stopped; it is not forced."""
    domains, destroyed = button.libvirt.domains, []
    destroy = domains.destroy

    async def forced(uuid: UUID) -> None:
        destroyed.append(uuid)
        await destroy(uuid)

    async def later(uuid: UUID) -> None:
        asyncio.get_running_loop().call_later(0.1, lambda: ending.append(asyncio.ensure_future(destroy(uuid))))

    ending: list[asyncio.Future[None]] = []
    domains.destroy = forced  # type: ignore[method-assign]
    button.press(later)

    async with asyncio.timeout(power_module._PRESS_SECONDS / 2):
        await button.power.stop(button.record)

    assert ending
    assert not destroyed
    assert not await button.runs()


async def test_stop_is_forced(button: Button) -> None:
    """A guest that does not heed its button is ended after the time limit."""
    button.press(ignored)

    await impatient(button).stop(button.record)

    assert button.pressed == [button.record.uuid]
    assert not await button.runs()
    assert button.accounting.done == ["rest"]


async def test_button_is_pressed_again(button: Button, monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest that was still booting and lost the first press gets another one."""
    monkeypatch.setattr(power_module, "_PRESS_SECONDS", 0.05)
    shutdown = button.libvirt.domains.shutdown

    async def third_time(uuid: UUID) -> None:
        if len(button.pressed) == 3:
            await shutdown(uuid)

    button.press(third_time)
    await button.power.stop(button.record)

    assert len(button.pressed) == 3
    assert not await button.runs()


async def test_button_that_cannot_be_pressed(button: Button) -> None:
    """A guest that libvirt cannot ask is ended at once."""

    async def refused(_: UUID) -> None:
        raise HypervisorError("no agent")

    button.press(refused)
    await button.power.stop(button.record)

    assert not await button.runs()


async def test_libvirt_away(button: Button) -> None:
    """Without libvirt nothing is forced, and nothing is given back: the stop is tried again later."""

    async def away(_: UUID) -> None:
        raise HypervisorUnavailable("gone")

    button.press(away)
    with pytest.raises(HypervisorUnavailable):
        await button.power.stop(button.record)

    assert await button.runs()
    assert button.accounting.done == []
    assert not button.power._waiting


async def test_stop_of_a_stopped_guest(button: Button) -> None:
    """A stop can be run again."""
    await button.power.stop(button.record)
    await button.power.stop(button.record)

    assert not await button.runs()


async def test_stop_without_placement(button: Button) -> None:
    """A guest that was stopped is stopped, also where Placement could not be told."""
    button.accounting.fault = Unavailable("away")

    await button.power.stop(button.record)

    assert not await button.runs()


async def test_start(button: Button) -> None:
    """What the guest needs is claimed, then it is started; both can be run again."""
    await button.libvirt.domains.destroy(button.record.uuid)

    await button.power.start(button.record)
    assert await button.runs()
    await button.power.start(button.record)

    assert button.accounting.done == ["claim", "claim"]


async def test_start_of_a_guest_that_runs(button: Button) -> None:
    """One that an earlier daemon has started is counted, also where its memory has left too little for another."""
    full = Power(
        admission=Admission(overhead_mb=0, free_mb=lambda: 0),
        domains=button.libvirt.domains,
        accounting=cast("Accounting", button.accounting),
        redefine=_lost,
        shutdown_timeout=5,
    )

    await full.start(button.record)

    assert await button.runs()
    assert button.accounting.done == ["claim"]


async def test_start_without_a_slot(button: Button) -> None:
    """Where Placement has no slot left nothing is started, and the refusal says what to do."""
    await button.libvirt.domains.destroy(button.record.uuid)
    button.accounting.fault = Full("Unable to allocate inventory for 'MEM_ENCRYPTION_CONTEXT'")

    with pytest.raises(Full, match="every encryption slot of this host is taken") as caught:
        await button.power.start(button.record)

    assert caught.value.remedy
    assert not await button.runs()


@pytest.mark.parametrize("hard", [False, True])
async def test_reboot(button: Button, *, hard: bool) -> None:
    """Both halves of a reboot write nothing to Placement: the slot is held."""
    button.press(button.libvirt.domains.shutdown)

    await button.power.halt(button.record, hard=hard)
    assert not await button.runs()
    await button.power.restart(button.record)

    assert await button.runs()
    assert bool(button.pressed) is not hard
    assert button.accounting.done == []


async def test_hard_reboot_of_a_stopped_guest(button: Button) -> None:
    """A guest that does not run needs a slot before it is started by a reboot."""
    await button.libvirt.domains.destroy(button.record.uuid)

    await button.power.halt(button.record, hard=True)

    assert button.accounting.done == ["claim"]
    button.accounting.fault = Full("none left of 'MEM_ENCRYPTION_CONTEXT'")
    with pytest.raises(Full):
        await button.power.halt(button.record, hard=True)


async def test_cancelled_while_it_waits(button: Button) -> None:
    """A stop that is cancelled forces nothing, and forgets the guest."""
    button.press(ignored)
    stopping = asyncio.create_task(button.power.stop(button.record))
    while not button.pressed:  # noqa: ASYNC110 - a button rings no bell
        await asyncio.sleep(0.01)

    stopping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stopping

    assert await button.runs()
    assert not button.power._waiting


async def test_guest_that_libvirt_does_not_know(button: Button) -> None:
    """Neither it nor this host does: it is well stopped, and cannot be started."""
    gone = record(State.ACTIVE, uuid4())

    await button.power.stop(gone)
    with pytest.raises(DefinitionLost):
        await button.power.start(gone)


@pytest.mark.parametrize("again", ["start", "restart"])
async def test_domain_that_somebody_took_away(button: Button, again: str) -> None:
    """A guest that libvirt does not know any more is made known to it again, then started."""
    await button.libvirt.domains.destroy(button.record.uuid)
    await button.libvirt.domains.undefine(button.record.uuid)

    async def redefine(known: Record) -> None:
        xml = domain_xml(known.uuid, f"guest-{known.uuid}", security=SEV, extra=agent_metadata(known.uuid))
        await button.libvirt.domains.define(xml)

    power = Power(
        domains=button.libvirt.domains,
        accounting=cast("Accounting", button.accounting),
        admission=Admission(overhead_mb=0),
        redefine=redefine,
        shutdown_timeout=5,
    )
    await getattr(power, again)(button.record)

    assert await button.runs()
