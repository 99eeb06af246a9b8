"""A daemon counts once its name is its own, or while nobody can say whose it is."""

import asyncio

from sev_agent.compute.right_to_count import RightToCount
from sev_agent.errors import HostTaken, SevAgentError
from sev_agent.messaging.broker import BrokerUnavailable
from sev_agent.messaging.host_lock import HostBusy

_AWAY = BrokerUnavailable("connection refused")
_BUSY = HostBusy("another connection has it")


async def _may_count(right: RightToCount) -> bool:
    waiting = asyncio.ensure_future(right.wait())
    await asyncio.sleep(0)
    return waiting.done() or not waiting.cancel()


def _after(*told: SevAgentError | None) -> RightToCount:
    """What the broker told, in order: each fault, or ``None`` where it was up."""
    right = RightToCount()
    for fault in told:
        right.look(is_up=fault is None, fault=fault)
    return right


async def test_not_before_the_broker_has_answered() -> None:
    """Before the first attempt to connect has ended, whose the name is may still be found out."""
    assert not await _may_count(_after())


async def test_not_while_another_has_the_name() -> None:
    """Neither while the name is busy nor once it is taken, also where the broker was away before."""
    assert not await _may_count(_after(_BUSY))
    assert not await _may_count(_after(HostTaken("another daemon has it")))
    assert not await _may_count(_after(_AWAY, _BUSY))


async def test_while_the_broker_is_away() -> None:
    """A broker that cannot be reached keeps no host from counting."""
    assert await _may_count(_after(_AWAY))
    assert await _may_count(_after(_BUSY, _AWAY))


async def test_for_good_once_claimed() -> None:
    """A name once claimed stays claimed: later the other connection is most likely the daemon's own last one."""
    assert await _may_count(_after(_BUSY, None))
    assert await _may_count(_after(None, _BUSY))


async def test_who_waits_is_woken() -> None:
    """What the broker tells ends the wait."""
    right = _after(_BUSY)
    waiting = asyncio.ensure_future(right.wait())
    await asyncio.sleep(0)
    assert not waiting.done()

    right.look(is_up=True, fault=None)

    async with asyncio.timeout(60):
        await waiting
