"""What a host can be asked over RabbitMQ: its RPC methods."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from sev_agent import schema
from sev_agent.compute.instances import Instances
from sev_agent.compute.reconciler import Reconciler
from sev_agent.compute.record import Record, State
from sev_agent.compute.record_store import RecordStore
from sev_agent.messaging.answering import Method
from sev_agent.messaging.envelope import RequestContext
from sev_agent.uninterrupted import uninterrupted

_MAX_CONSOLE_BYTES = 512 * 1024
_MAX_ROTATED = 16
"""Older logs that are looked for; virtlogd keeps three by default."""


def work_methods(instances: Instances) -> tuple[Method[Any], ...]:
    """The methods of the work queue: each returns once the request is in the journal."""

    async def build(context: RequestContext, arguments: schema.BuildArguments) -> JsonValue:
        record = await instances.build(arguments.instance, context.request_id, arguments.scheduling)
        return _state(record)

    async def terminate(context: RequestContext, arguments: schema.InstanceArguments) -> JsonValue:
        await instances.terminate(arguments.instance_uuid, context.request_id)
        return None

    async def start(context: RequestContext, arguments: schema.InstanceArguments) -> JsonValue:
        return _state(await instances.change_power(arguments.instance_uuid, State.STARTING, context.request_id))

    async def stop(context: RequestContext, arguments: schema.InstanceArguments) -> JsonValue:
        return _state(await instances.change_power(arguments.instance_uuid, State.STOPPING, context.request_id))

    async def reboot(context: RequestContext, arguments: schema.RebootArguments) -> JsonValue:
        hard = arguments.reboot_type is schema.RebootType.HARD
        state = State.REBOOTING_HARD if hard else State.REBOOTING
        return _state(await instances.change_power(arguments.instance_uuid, state, context.request_id))

    return (
        Method(name="build_and_run_instance", arguments=schema.BuildArguments, handler=build),
        Method(name="terminate_instance", arguments=schema.InstanceArguments, handler=terminate),
        Method(name="start_instance", arguments=schema.InstanceArguments, handler=start),
        Method(name="stop_instance", arguments=schema.InstanceArguments, handler=stop),
        Method(name="reboot_instance", arguments=schema.RebootArguments, handler=reboot),
    )


def query_methods(
    instances: Instances,
    store: RecordStore,
    host_status: Callable[[], Awaitable[dict[str, Any]]],
    reconciler: Reconciler,
) -> tuple[Method[Any], ...]:
    """The methods of the query queue, which answer also while the hypervisor is away, be it that it is.

    They change no instance. ``reconcile`` returns when it is done.
    """

    async def reconcile(_: RequestContext, arguments: schema.ReconcileArguments) -> JsonValue:
        # A caller that no longer waits must not leave a write half done.
        outcome = await uninterrupted(reconciler.now(dry_run=arguments.dry_run))
        return {"dry_run": outcome.dry_run, "differences": outcome.findings()}

    async def get_instance(_: RequestContext, arguments: schema.InstanceArguments) -> JsonValue:
        return instances.view(arguments.instance_uuid)

    async def list_instances(_: RequestContext, __: schema.NoArguments) -> JsonValue:
        return list(instances.views())

    async def get_host_status(_: RequestContext, __: schema.NoArguments) -> JsonValue:
        return await host_status()

    async def get_console_output(_: RequestContext, arguments: schema.ConsoleArguments) -> JsonValue:
        instances.view(arguments.instance_uuid)
        path = store.files(arguments.instance_uuid).console_log
        return await asyncio.to_thread(tail, path, arguments.length)

    return (
        Method(name="get_instance", arguments=schema.InstanceArguments, handler=get_instance),
        Method(name="list_instances", arguments=schema.NoArguments, handler=list_instances),
        Method(name="get_host_status", arguments=schema.NoArguments, handler=get_host_status),
        Method(name="get_console_output", arguments=schema.ConsoleArguments, handler=get_console_output),
        Method(
            name="reconcile", arguments=schema.ReconcileArguments, handler=reconcile, timeout=schema.RECONCILE_SECONDS
        ),
    )


def _state(record: Record) -> dict[str, JsonValue]:
    return {"uuid": str(record.uuid), "state": record.state.value}


def tail(path: Path, lines: int | None) -> str:
    """The last ``lines`` lines of a guest's console (all without), of its last 512 KiB; empty where there is none.

    virtlogd gives a log that has grown too large (2 MiB by default) the suffix ``.0``, that one ``.1``, and so on: what
    is read goes back over as many of them as it takes. What a guest prints is anybody's bytes: what is not UTF-8 is
    replaced.
    """
    content = b""
    for part in (path, *(path.with_name(f"{path.name}.{age}") for age in range(_MAX_ROTATED))):
        if len(content) == _MAX_CONSOLE_BYTES:
            break
        # The log itself may be missing for the moment in which it is rotated.
        with contextlib.suppress(FileNotFoundError):
            content = _end(part, _MAX_CONSOLE_BYTES - len(content)) + content
    text = content.decode(errors="replace")
    if lines is None:
        return text
    return "".join(text.splitlines(keepends=True)[-lines:])


def _end(path: Path, length: int) -> bytes:
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - length))
        return file.read(length)
