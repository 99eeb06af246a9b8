"""A command that watches what a host makes of its request, until it has ended."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any, Final

from rich.console import Console

from sev_agent.cli.remote import MAX_REPLY_BYTES, Remote
from sev_agent.errors import SevAgentError
from sev_agent.messaging.client import RemoteError
from sev_agent.messaging.envelope import Notification
from sev_agent.messaging.notifications import subscribe

_ASK_SECONDS: Final = 5.0
_POLL_SECONDS: Final = 0.1

_SETTLED: Final = frozenset({"active", "stopped", "error"})
"""States that do not pass by themselves."""


class OperationFailed(SevAgentError):
    """What was asked for ended in an error on the host."""

    code = "operation.failed"


async def follow_power(
    remote: Remote, method: str, arguments: dict[str, str], *, limit: float | None
) -> dict[str, Any]:
    """Order a start, a stop or a reboot, and return the instance when it has ended. Raises ``OperationFailed``."""
    uuid = arguments["instance_uuid"]
    await remote.order(method, **arguments)
    deadline = time.monotonic() + (limit or 0)
    while True:
        view: Any = await remote.ask("get_instance", instance_uuid=uuid)
        if limit is None or view["state"] in _SETTLED:
            break
        if time.monotonic() > deadline:
            raise OperationFailed(
                f"instance {uuid} is still {view['state']} after {limit:g} s",
                remedy=f"it goes on: sev-agent instance show {uuid}",
            )
        await asyncio.sleep(_POLL_SECONDS)
    if limit is not None and view["fault"]:
        raise OperationFailed(fault_of(view))
    return dict(view)


async def follow_build(remote: Remote, instance: dict[str, Any], *, limit: float, screen: Console) -> dict[str, Any]:
    """Request a build, show its steps as they end, and return the instance. Raises ``OperationFailed``."""
    uuid = instance["uuid"]
    async with subscribe(remote.broker, max_message_bytes=MAX_REPLY_BYTES) as notifications:
        await request_build(remote, instance, screen)
        await _follow(remote, uuid, notifications, limit, screen)
    view: Any = await remote.ask("get_instance", instance_uuid=uuid)
    # One that is failing has failed, though its undoing does not get on.
    if view["state"] in {"error", "failing"}:
        raise OperationFailed(fault_of(view))
    return dict(view)


async def follow_deletion(remote: Remote, uuid: str, *, limit: float) -> None:
    """Request a deletion, and return when nothing is left. Raises ``OperationFailed``."""
    await remote.order("terminate_instance", instance_uuid=uuid)
    deadline = time.monotonic() + limit
    while True:
        try:
            view: Any = await remote.ask("get_instance", instance_uuid=uuid)
        except RemoteError as error:
            if error.code == "instance.not_found":
                return
            raise
        if time.monotonic() > deadline:
            raise OperationFailed(
                f"instance {uuid} is still {view['state']} after {limit:g} s",
                remedy="it goes on; see the host's /readyz for what it waits for",
            )
        await asyncio.sleep(_POLL_SECONDS)


async def request_build(remote: Remote, instance: dict[str, Any], screen: Console) -> None:
    """Request a build, and return when the host has accepted it."""
    await remote.order("build_and_run_instance", instance=instance)
    screen.print(f"{remote.host} has accepted instance {instance['uuid']}.", highlight=False)


async def _follow(
    remote: Remote, uuid: str, notifications: AsyncIterator[Notification], limit: float, screen: Console
) -> None:
    """Show the steps until the build has ended. Asks too: a notification may be missed, a state may not."""
    deadline = time.monotonic() + limit
    view: Any
    arriving = asyncio.ensure_future(anext(notifications))
    try:
        with screen.status("building"):
            while (left := deadline - time.monotonic()) > 0:
                done, _ = await asyncio.wait({arriving}, timeout=min(left, _ASK_SECONDS))
                if not done:
                    view = await remote.ask("get_instance", instance_uuid=uuid)
                    if view["state"] in {"active", "error"}:
                        return
                    continue
                notification = arriving.result()
                arriving = asyncio.ensure_future(anext(notifications))
                if notification.payload.get("instance_uuid") == uuid and _is_last(notification, screen):
                    return
    finally:
        arriving.cancel()
        await asyncio.gather(arriving, return_exceptions=True)
    view = await remote.ask("get_instance", instance_uuid=uuid)
    raise OperationFailed(
        f"instance {uuid} is still {view['state']} after {limit:g} s"
        + (f": {fault_of(view)}" if view["fault"] else ""),
        remedy=f"it goes on: sev-agent instance show {uuid}",
    )


def _is_last(notification: Notification, screen: Console) -> bool:
    payload = notification.payload
    match notification.event_type:
        case "sev.instance.create.progress":
            screen.print(f"  [green]✓[/] {payload['step']:<14} {payload['seconds']:>8.3f} s", highlight=False)
        case "sev.instance.create.end" | "sev.instance.delete.end":
            return True
        case "sev.instance.create.error":
            # What was refused is another request for the same UUID: this one was accepted.
            return payload["state"] != "refused"
    return False


def fault_of(view: dict[str, Any]) -> str:
    """The fault of an instance, in one line."""
    fault = view["fault"]
    remedy = f" ({fault['remedy']})" if fault["remedy"] else ""
    return f"{fault['code']} at step {fault['step']}: {fault['message']}{remedy}"
