"""Servers that nobody says anything of: whether they were handed to the schedulers, and whether that was lost."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import event, select, update

from sev_agent.api.tables import ServerRow
from sev_agent.api.told import Listener, Outcome, Told
from sev_agent.api.upkeep import Upkeep
from sev_agent.config import UpkeepSection
from tests.compute_api import InProcessApi, upkeep_of
from tests.unit.api.requests import make_flavor, make_image, server

SECONDS = timedelta(seconds=UpkeepSection().schedule_deadline)

REFUSED = {"vm_state": "error", "fault": {"code": "scheduler.no_valid_host"}}


@pytest.fixture
async def upkeep(api: InProcessApi) -> Upkeep:
    await make_flavor(api)
    return upkeep_of(api)


async def create(api: InProcessApi) -> str:
    status, made = await api.ask("POST", "/servers", json=server(make_image(api)))
    assert status == 202
    return str(made["server"]["id"])


async def change(api: InProcessApi, server_id: str, **values: Any) -> None:
    async with api.withdrawals._database.writing() as session:
        await session.execute(update(ServerRow).where(ServerRow.id == server_id).values(**values))


async def row(api: InProcessApi, server_id: str) -> ServerRow:
    async with api.withdrawals._database.reading() as session:
        return (await session.scalars(select(ServerRow).where(ServerRow.id == server_id))).one()


async def test_one_that_its_maker_may_never_have_handed_over(api: InProcessApi, upkeep: Upkeep) -> None:
    """It is handed over by nobody else: it ends in ERROR, and is built if a scheduler speaks of it after all."""
    made = await create(api)
    assert await upkeep._see_after(made) == "waiting"
    await change(api, made, looks=2)
    assert await upkeep._see_after(made) == "failed"
    assert len(api.sent.casts) == 1
    _, shown = await api.ask("GET", f"/servers/{made}")
    assert shown["server"]["status"] == "ERROR"
    assert "ended before it had handed it to the schedulers" in shown["server"]["fault"]["message"]
    lost = await row(api, made)
    word = Told(instance_uuid=made, host="c-1")
    assert Listener(UpkeepSection()).by_scheduler(lost, "end", word).outcome is Outcome.APPLIED
    assert (lost.vm_state, lost.casts) == ("building", 1)


async def test_one_that_was_handed_over(api: InProcessApi, upkeep: Upkeep) -> None:
    """Its maker writes that down at the next occasion; then it is handed over again where nobody speaks of it."""
    made = await create(api)
    await api.handovers.settle()
    assert await upkeep._see_after(made) == "scheduled_again"
    assert [method for method, _ in api.sent.casts] == ["schedule_instance"] * 2
    assert (await row(api, made)).casts == 2


async def test_a_handover_that_is_written_down_meanwhile(api: InProcessApi, upkeep: Upkeep) -> None:
    """Whoever believed its maker dead sees it, and does not end it."""
    made = await create(api)
    await change(api, made, looks=2)
    before = await row(api, made)
    await api.handovers.settle()
    await upkeep._not_handed_over(before)
    assert (await row(api, made)).vm_state == "building"


async def test_the_last_before_a_stop(api: InProcessApi, upkeep: Upkeep) -> None:
    """A process that stops writes it down."""
    looked = asyncio.Event()

    def is_up() -> bool:
        looked.set()
        return False

    upkeep._broker_is_up = is_up
    running = asyncio.create_task(upkeep.run())
    await looked.wait()
    made = await create(api)
    running.cancel()
    await asyncio.wait({running})
    assert (await row(api, made)).casts == 1


async def test_a_creation_is_one_transaction(api: InProcessApi, upkeep: Upkeep) -> None:
    """That it was handed over costs none of its own; of one that has a host by then nothing is written."""
    begun: list[Any] = []
    written: list[int] = []
    engine = api.withdrawals._database.engine.sync_engine
    event.listen(engine, "begin", begun.append)

    def executed(_: Any, cursor: Any, statement: str, *__: Any) -> None:
        if statement.startswith("UPDATE"):
            written.append(cursor.rowcount)

    event.listen(engine, "after_cursor_execute", executed)
    made = await create(api)
    reads = 1  # the flavor's
    assert len(begun) == 1 + reads
    assert not written
    await change(api, made, host="c-1", casts=1)
    await api.handovers.settle()
    assert written == [1, 0]


@pytest.mark.parametrize("decided", [{"host": "c-1"}, REFUSED])
async def test_one_that_a_backlog_has_passed(api: InProcessApi, upkeep: Upkeep, decided: dict[str, Any]) -> None:
    """While others wait it may be among them, until one that was handed over well after it is decided."""
    api.sent.waiting = 7
    now = datetime.now(UTC)
    lost, later = [await create(api) for _ in range(2)]
    await api.handovers.settle()
    await change(api, lost, created_at=now - 3 * SECONDS, updated_at=now - 3 * SECONDS)
    silent = {"vm_state": "error", "fault": {"code": "scheduler.silent"}}
    await change(api, later, created_at=now, updated_at=now, **silent)
    assert await upkeep._see_after(lost) == "waiting"
    await change(api, later, **{"vm_state": "building", **decided})
    assert await upkeep_of(api)._see_after(lost) == "scheduled_again"
    assert await upkeep_of(api)._see_after(lost) == "waiting", "it may be among them again"


async def test_one_that_is_not_long_before_one_that_was_decided(api: InProcessApi, upkeep: Upkeep) -> None:
    """Another scheduler may have it in hand still."""
    api.sent.waiting = 7
    slow, later = [await create(api) for _ in range(2)]
    await api.handovers.settle()
    await change(api, later, host="c-1")
    assert await upkeep._see_after(slow) == "waiting"
