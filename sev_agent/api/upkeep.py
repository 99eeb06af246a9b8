"""The periodic look after servers that are on their way for too long: hosts are asked, lost requests sent again.

Those on no way are compared with their hosts' word, too, seldom: a notification that was lost is made up for then.
"""

import asyncio
import contextlib
import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import structlog
from pydantic import ValidationError
from sqlalchemy import delete, select, update
from sqlalchemy.orm import undefer

from sev_agent.api.casts import Casts, NoScheduler
from sev_agent.api.database import Database, DatabaseUnavailable
from sev_agent.api.handovers import Handovers
from sev_agent.api.metrics import ApiMetrics
from sev_agent.api.queue_progress import QueueProgress
from sev_agent.api.state import Condition, Task, Vm, of_host
from sev_agent.api.tables import AddressPoolRow, ServerRow
from sev_agent.api.told import SILENT, Listener, Told
from sev_agent.api.withdrawals import ASK_AT_ONCE, Withdrawals
from sev_agent.config import ApiConfig
from sev_agent.errors import SevAgentError
from sev_agent.messaging.broker import BrokerUnavailable, Unroutable
from sev_agent.messaging.client import MessagingTimeout, RemoteError
from sev_agent.uninterrupted import raise_if_cancelled, uninterrupted

log = structlog.stdlib.get_logger(__name__)

_AT_ONCE = 10
_BATCH = 100
_LAST_SECONDS = 3.0
_PATIENCE = ASK_AT_ONCE
"""Looks after which a host that knows nothing of a request is believed: it may still wait in the host's queue."""
_NOT_FOUND = "instance.not_found"
_SAME = "same"
"""What comes of a comparison that finds no difference."""


class Upkeep:
    """Runs in every API process; each server is looked after by the one that claims it first.

    ``broker_is_up`` says whether asking has a point: while the broker is away, nothing is known of anything.
    """

    def __init__(
        self,
        config: ApiConfig,
        *,
        database: Database,
        casts: Casts,
        listener: Listener,
        withdrawals: Withdrawals,
        handovers: Handovers,
        metrics: ApiMetrics,
        broker_is_up: Callable[[], bool],
    ) -> None:
        self._database = database
        self._casts = casts
        self._listener = listener
        self._withdrawals = withdrawals
        self._handovers = handovers
        self._metrics = metrics
        self._settings = config.upkeep
        self._progress = QueueProgress(
            database, believed=config.upkeep.interval, margin=config.upkeep.schedule_deadline
        )
        self._retention = timedelta(seconds=config.api.deleted_retention)
        self._broker_is_up = broker_is_up

    async def run(self) -> None:
        """Look, and look again, until cancelled; then write down what this process alone knows of creations."""
        try:
            while True:
                raise_if_cancelled()
                try:
                    await uninterrupted(self._settle())
                    await uninterrupted(self._purge())
                    if self._broker_is_up():
                        while await self._look():
                            pass
                except DatabaseUnavailable as error:
                    log.warning("upkeep.postponed", error=str(error))
                await asyncio.sleep(self._settings.interval * random.uniform(0.8, 1.2))
        finally:
            with contextlib.suppress(DatabaseUnavailable, TimeoutError):
                async with asyncio.timeout(_LAST_SECONDS):
                    await self._settle()

    async def _settle(self) -> None:
        await self._withdrawals.settle()
        await self._handovers.settle()

    async def _look(self) -> bool:
        """Claim what is due, and see after it; whether there may be more."""
        ids = await uninterrupted(self._claim())
        slots = asyncio.Semaphore(_AT_ONCE)

        async def one(server_id: str) -> None:
            async with slots:
                try:
                    # A stop waits for it, so that no transaction is torn: every question has its time limit.
                    action = await uninterrupted(self._see_after(server_id))
                except (BrokerUnavailable, DatabaseUnavailable) as error:
                    log.info("upkeep.postponed", instance_uuid=server_id, error=str(error))
                    return
                except Exception:
                    # One row that we cannot cope with must not end the service of all others.
                    log.exception("upkeep.failed", instance_uuid=server_id)
                    return
                self._metrics.upkeep.labels(action).inc()
                tell = log.debug if action == _SAME else log.info
                tell("upkeep.done", instance_uuid=server_id, action=action)

        async with asyncio.TaskGroup() as group:
            for server_id in ids:
                group.create_task(one(server_id), name=f"upkeep-{server_id}")
        return len(ids) == _BATCH

    async def _claim(self) -> list[str]:
        """The servers that are due, put off for everyone else."""
        now = datetime.now(UTC)
        put_off = now + timedelta(seconds=self._settings.transition_deadline)
        claimed = []
        async with self._database.writing() as session:
            due = select(ServerRow.id, ServerRow.look_at).where(ServerRow.look_at <= now).order_by(ServerRow.look_at)
            due = due.limit(_BATCH).with_for_update(skip_locked=True)
            for server_id, look_at in (await session.execute(due)).all():
                mine = await session.execute(
                    update(ServerRow)
                    .where(ServerRow.id == server_id, ServerRow.look_at == look_at)
                    .values(look_at=put_off, looks=ServerRow.looks + 1)
                )
                if mine.rowcount:  # type: ignore[attr-defined]
                    claimed.append(server_id)
        return claimed

    async def _see_after(self, server_id: str) -> str:
        async with self._database.reading() as session:
            row = await session.get(ServerRow, server_id, options=[undefer(ServerRow.request)])
        if row is None or row.deleted_at is not None:
            return "nothing"
        if row.host is not None:
            return await self._ask_host(row, row.host)
        if row.task_state == Task.DELETING:
            # No scheduler and no host has spoken of it since: it is nowhere. If one does later, it is deleted there;
            # while its request may wait for a scheduler, nobody else gets its addresses.
            use = await self._casts.schedulers_take()
            forget = self._listener.forget_unconfirmed if use.waiting else self._listener.forget
            return await self._change(row, forget, "forgotten")
        if row.vm_state == Vm.BUILDING:
            return await self._schedule_again(row)
        return "nothing"

    async def _schedule_again(self, row: ServerRow) -> str:
        use = await self._casts.schedulers_take()
        if use.waiting and not await self._progress.has_passed(row.updated_at):
            # Its request may be among them: nothing is lost, the schedulers are away or busy.
            return "waiting"
        if not row.casts:
            return await self._not_handed_over(row)
        if row.casts >= self._settings.schedule_attempts:
            message = (
                f"no scheduler said anything of it, though it was handed to them {row.casts} times"
                " (check that sev-agent scheduler runs; then delete this server, and create another one)"
            )
            return await self._change(row, lambda held: self._listener.fail(held, message, code=SILENT), "failed")
        later = datetime.now(UTC) + timedelta(seconds=self._settings.schedule_deadline)

        def again(held: ServerRow) -> None:
            held.casts += 1
            held.updated_at = datetime.now(UTC)
            held.looks, held.look_at = 0, later

        try:
            await self._casts.schedule(row)
        except NoScheduler as error:
            log.warning("upkeep.no_scheduler", instance_uuid=row.id, error=str(error))
        # Counted afterwards: what the broker never took was no attempt, and one that is made twice does no harm.
        return await self._change(row, again, "scheduled_again")

    async def _not_handed_over(self, row: ServerRow) -> str:
        """Who made it is dead: had it answered, then that it failed; or it left whoever asked without any answer.

        To hand it over now could make a second one beside that of the next try. If it was handed over after all, and
        its request is in the hands of a slow scheduler, it is built when that one says so.
        """
        if row.looks < _PATIENCE:
            return "waiting"
        message = (
            "the API process that took the request ended before it had handed it to the schedulers"
            " (delete this server, and create another one)"
        )

        def end(held: ServerRow) -> None:
            if not held.casts:
                self._listener.fail(held, message, code=SILENT)

        return await self._change(row, end, "failed")

    async def _ask_host(self, row: ServerRow, host: str) -> str:
        try:
            told = Told.model_validate(await self._casts.ask("get_instance", row.id, host))
        except RemoteError as error:
            if error.code == _NOT_FOUND:
                return await self._not_there(row, host)
            return await self._no_answer(row, host, error)
        except (Unroutable, MessagingTimeout, ValidationError) as error:
            return await self._no_answer(row, host, error)
        if row.task_state == Task.DELETING:
            return await self._delete_again(row, host)
        return await self._compare(row, told)

    async def _compare(self, row: ServerRow, told: Told) -> str:
        """Believe a host that says something new, and one that has nothing to do for long enough."""
        condition = of_host(told.state or "")
        if condition is not None and condition.task is None and _is(row, condition, told):
            return await self._change(row, self._put_off, _SAME)
        is_news = told.updated_at is None or row.told_at is None or told.updated_at > row.told_at
        if condition is not None and (is_news or (condition.task is None and row.looks >= _PATIENCE)):
            return await self._change(row, lambda held: self._listener.settle(held, condition, told), "settled")
        if condition is not None and condition.task is not None:
            return await self._change(row, _seen, "waiting")
        if condition is None and _is_settled(row):
            return await self._change(row, self._put_off, _SAME)
        return "waiting"

    async def _delete_again(self, row: ServerRow, host: str) -> str:
        if row.looks < _PATIENCE:
            return "waiting"
        await self._casts.terminate(row, host)
        return await self._change(row, _seen, "deleted_again")

    async def _not_there(self, row: ServerRow, host: str) -> str:
        if row.task_state == Task.DELETING:
            return await self._change(row, self._listener.forget, "forgotten")
        if row.vm_state == Vm.ERROR and row.task_state is None:
            return await self._change(row, self._put_off, _SAME)
        if row.vm_state == Vm.BUILDING:
            use = await self._casts.host_takes(host)
            if not use.consumers:
                return await self._takes_nothing(row, host)
            if use.waiting:
                return await self._change(row, _seen, "waiting")
        if row.looks < _PATIENCE:
            return "waiting"
        message = f"host {host} does not know it (any more): it was lost on the way, or deleted there by hand"
        return await self._change(row, lambda held: self._listener.fail(held, message, code="server.lost"), "failed")

    async def _takes_nothing(self, row: ServerRow, host: str) -> str:
        """Its request waits in the queue of a host that answers, and cannot work."""
        if row.looks < self._settings.looks:
            return "waiting"
        message = (
            f"host {host} takes no requests, its hypervisor may be away; it builds the server when it takes them again"
            " (delete this server, and create another one)"
        )
        return await self._change(
            row, lambda held: self._listener.fail(held, message, code="server.host_away"), "failed"
        )

    async def _no_answer(self, row: ServerRow, host: str, error: Exception) -> str:
        log.info("upkeep.no_answer", instance_uuid=row.id, host=host, error=str(error))
        if _is_settled(row):
            # On no way: what was known last stands until the host says otherwise.
            return await self._change(row, self._put_off, "host_away")
        if row.looks < self._settings.looks:
            return "waiting"
        if row.task_state == Task.DELETING:
            # Its request waits in the host's queue, and is carried out if the host ever returns.
            return await self._change(row, self._listener.forget_unconfirmed, "forgotten")
        if row.vm_state == Vm.BUILDING:
            why = str(error) if isinstance(error, SevAgentError) else "it answers nonsense"
            message = f"host {host} has not answered {row.looks} questions for it; the last time: {why}"
            return await self._change(
                row, lambda held: self._listener.fail(held, message, code="server.host_away"), "failed"
            )
        return await self._change(row, self._give_up_task, "given_up")

    async def _change(self, row: ServerRow, change: Callable[[ServerRow], None], action: str) -> str:
        """Do ``change``, unless something has happened to the server since it was read."""
        async with self._database.writing() as session:
            held = await session.get(ServerRow, row.id, with_for_update=True)
            if held is None or (held.updated_at, held.look_at) != (row.updated_at, row.look_at):
                return "overtaken"
            change(held)
        return action

    def _put_off(self, row: ServerRow) -> None:
        """Until the next comparison; for its owner nothing has changed."""
        row.look_at, row.looks = self._listener.next_comparison(), 0

    def _give_up_task(self, row: ServerRow) -> None:
        self._put_off(row)
        row.task_state = None
        row.updated_at = datetime.now(UTC)

    async def _purge(self) -> None:
        """Forget for good what was deleted long ago."""
        gone = datetime.now(UTC) - self._retention
        async with self._database.writing() as session:
            # As whoever gives addresses does first: both delete many of them, and would wait for each other.
            await session.execute(select(AddressPoolRow).order_by(AddressPoolRow.network_id).with_for_update())
            await session.execute(delete(ServerRow).where(ServerRow.deleted_at < gone))


def _seen(row: ServerRow) -> None:
    row.looks = 0


def _is_settled(row: ServerRow) -> bool:
    return row.task_state is None and row.vm_state != Vm.BUILDING


def _is(row: ServerRow, condition: Condition, told: Told) -> bool:
    """Whether a server is known to be what its host says it is, and for the same reason."""
    known = (row.vm_state, row.task_state, (row.fault or {}).get("code"))
    return known == (condition.vm, condition.task, told.fault.code if told.fault else None)
