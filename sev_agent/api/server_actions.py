"""What is done to a server that is there: deletion, start, stop, reboot, and a look at its console."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import structlog
from sqlalchemy import update

from sev_agent.api.caller import Caller
from sev_agent.api.casts import Casts
from sev_agent.api.database import Database
from sev_agent.api.faults import ConflictingRequest
from sev_agent.api.host_names import without_names, without_paths
from sev_agent.api.servers import find
from sev_agent.api.state import Task, Vm
from sev_agent.api.tables import ServerRow
from sev_agent.api.told import Listener
from sev_agent.config import UpkeepSection
from sev_agent.errors import SevAgentError, Unavailable
from sev_agent.messaging.broker import Unroutable
from sev_agent.messaging.client import MessagingTimeout, RemoteError

log = structlog.stdlib.get_logger(__name__)


class HostSilent(Unavailable):
    """The host that was asked gave no answer."""

    code = "server.host_silent"


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerAction:
    """A start, a stop or a reboot: where it may begin, and the request that it is to a host."""

    name: str
    method: str
    task: Task
    begins_in: frozenset[Vm]
    arguments: Mapping[str, Any]
    over: frozenset[Task] = frozenset()


START: Final = PowerAction(
    name="start", method="start_instance", task=Task.POWERING_ON, begins_in=frozenset({Vm.STOPPED}), arguments={}
)
STOP: Final = PowerAction(
    name="stop", method="stop_instance", task=Task.POWERING_OFF, begins_in=frozenset({Vm.ACTIVE}), arguments={}
)
SOFT_REBOOT: Final = PowerAction(
    name="reboot",
    method="reboot_instance",
    task=Task.REBOOTING,
    begins_in=frozenset({Vm.ACTIVE}),
    arguments={"reboot_type": "SOFT"},
)
HARD_REBOOT: Final = PowerAction(
    name="reboot",
    method="reboot_instance",
    task=Task.REBOOTING_HARD,
    begins_in=frozenset({Vm.ACTIVE, Vm.STOPPED}),
    arguments={"reboot_type": "HARD"},
    over=frozenset({Task.REBOOTING}),
)


class ServerActions:
    """Row first, then cast: what is lost between them, the upkeep finds."""

    def __init__(self, database: Database, casts: Casts, listener: Listener, settings: UpkeepSection) -> None:
        self._database = database
        self._casts = casts
        self._listener = listener
        self._deadline = timedelta(seconds=settings.transition_deadline)

    async def delete(self, caller: Caller, server_id: str, request_id: str) -> None:
        """Raises ``ItemNotFound``, ``Unavailable``. Again for one that goes already is a success."""
        async with self._database.writing() as session:
            row = await find(session, caller, server_id, for_update=True)
            if row.task_state == Task.DELETING:
                return
            before = row.task_state
            if row.host is None and row.vm_state != Vm.BUILDING:
                self._listener.forget(row)
                return
            row.task_state = Task.DELETING.value
            row.request_id = request_id
            row.terminate_host = row.host
            row.updated_at = datetime.now(UTC)
            row.look_at, row.looks = row.updated_at + self._deadline, 0
        if row.host is None:
            # Wherever the schedulers put it: the first word of that brings the deletion there.
            return
        try:
            is_there = await self._casts.terminate(row, row.host)
        except SevAgentError:
            await self._take_back(row, Task.DELETING, before, request_id)
            raise
        if not is_there:
            await self._forget(row.id)

    async def power(self, caller: Caller, server_id: str, action: PowerAction, request_id: str) -> None:
        """Raises ``ItemNotFound``, ``ConflictingRequest``, ``Unavailable``."""
        async with self._database.writing() as session:
            row = await find(session, caller, server_id, for_update=True)
            _check(row, action)
            before = row.task_state
            row.task_state = action.task.value
            row.request_id = request_id
            row.updated_at = datetime.now(UTC)
            row.look_at, row.looks = row.updated_at + self._deadline, 0
        try:
            await self._casts.power(action.method, row, **action.arguments)
        except SevAgentError as error:
            await self._take_back(row, action.task, before, request_id)
            if isinstance(error, Unroutable):
                raise ConflictingRequest(f"The host of instance {server_id} has left.") from error
            raise

    async def console(self, caller: Caller, server_id: str, length: int | None) -> str:
        """The last ``length`` lines, or all that is kept. Raises ``ConflictingRequest`` before it has a host."""
        async with self._database.reading() as session:
            row = await find(session, caller, server_id)
        if row.host is None:
            raise ConflictingRequest(f"Instance {server_id} is not ready: it has no host yet.")
        try:
            output = await self._casts.ask("get_console_output", row.id, row.host, length=length)
        except Unroutable as error:
            raise ConflictingRequest(f"The host of instance {server_id} is away.") from error
        except MessagingTimeout as error:
            log.warning("server.console.no_answer", instance_uuid=row.id, host=row.host, error=str(error))
            raise HostSilent(f"the host of instance {server_id} did not answer in time", remedy="ask again") from error
        except RemoteError as error:
            said = error.message if caller.is_admin else without_names(without_paths(error.message), [row.host])
            raise ConflictingRequest(f"Instance {server_id} is not ready: {said}") from error
        return str(output)

    async def _take_back(self, row: ServerRow, task: Task, before: str | None, request_id: str) -> None:
        """As it was before the request, unless something else has happened to it since."""
        still = (ServerRow.id == row.id, ServerRow.task_state == task.value, ServerRow.request_id == request_id)
        async with self._database.writing() as session:
            await session.execute(
                update(ServerRow)
                .where(*still)
                .values(
                    task_state=before,
                    terminate_host=None,
                    look_at=self._listener.next_comparison() if before is None else ServerRow.look_at,
                )
            )

    async def _forget(self, server_id: str) -> None:
        async with self._database.writing() as session:
            row = await session.get(ServerRow, server_id, with_for_update=True)
            if row is not None and row.deleted_at is None:
                log.info("server.forgotten", instance_uuid=server_id, host=row.host, reason="its host has left")
                self._listener.forget_unconfirmed(row)


def _check(row: ServerRow, action: PowerAction) -> None:
    if row.task_state is not None and row.task_state not in action.over:
        raise ConflictingRequest(f"Cannot '{action.name}' instance {row.id} while it is in task_state {row.task_state}")
    if row.vm_state not in action.begins_in or row.host is None:
        raise ConflictingRequest(f"Cannot '{action.name}' instance {row.id} while it is in vm_state {row.vm_state}")
