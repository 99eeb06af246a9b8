"""Tenants are told reasons, and not the names of hosts; administrators are told both."""

from typing import Any

import pytest
from sqlalchemy import update

from sev_agent.api.tables import ServerRow
from sev_agent.errors import SevAgentError
from sev_agent.messaging.broker import Unroutable
from sev_agent.messaging.client import MessagingTimeout, RemoteError
from sev_agent.messaging.envelope import Failure
from tests.compute_api import InProcessApi
from tests.unit.api.requests import make_flavor, make_image, message, server

HOST = "compute-1"


async def placed(api: InProcessApi, **values: Any) -> str:
    """A server that its host has."""
    await make_flavor(api)
    _, made = await api.ask("POST", "/servers", json=server(make_image(api)))
    async with api.withdrawals._database.writing() as session:
        known = {"host": HOST, "vm_state": "active", "task_state": None}
        await session.execute(update(ServerRow).values(known | values))
    return str(made["server"]["id"])


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        (MessagingTimeout(f"no reply from queue 'sev_agent_query.{HOST}'"), 503),
        (RemoteError(Failure(kind="NotFound", message=f"host {HOST} has no such instance")), 409),
        (Unroutable(f"nobody listens on 'sev_agent_query.{HOST}'"), 409),
    ],
)
async def test_console(api: InProcessApi, fault: SevAgentError, status: int) -> None:
    """A console that cannot be read tells why, and not where."""
    uuid = await placed(api)
    api.sent.fault = fault
    found, body = await api.ask(
        "POST", f"/servers/{uuid}/action", json={"os-getConsoleOutput": {}}, roles="member", user="bob"
    )
    assert found == status
    assert HOST not in message(status, body)


async def test_fault(api: InProcessApi) -> None:
    """The fault of a server names hosts to administrators, and numbers them for tenants."""
    text = f"{HOST} said: it is full; compute-2 said: no memory"
    fault = {"code": "scheduler.no_valid_host", "message": text, "details": None, "hosts": [HOST, "compute-2"]}
    uuid = await placed(api, vm_state="error", host=None, fault=fault)
    _, shown = await api.ask("GET", f"/servers/{uuid}")
    assert shown["server"]["fault"]["message"] == text
    _, shown = await api.ask("GET", f"/servers/{uuid}", roles="member")
    assert shown["server"]["fault"]["message"] == "host 1 said: it is full; host 2 said: no memory"


async def test_paths(api: InProcessApi) -> None:
    """Where a host keeps its files is told to administrators only."""
    text = "OSError: [Errno 5] Input/output error: '/var/lib/sev-agent/x/disk.qcow2'"
    uuid = await placed(api, vm_state="error", fault={"code": "internal", "message": text, "details": None})
    _, shown = await api.ask("GET", f"/servers/{uuid}")
    assert shown["server"]["fault"]["message"] == text
    _, shown = await api.ask("GET", f"/servers/{uuid}", roles="member")
    assert shown["server"]["fault"]["message"] == "OSError: [Errno 5] Input/output error: 'a file of the host'"
    api.sent.fault = RemoteError(Failure(kind="OSError", message="cannot read /var/lib/sev-agent/x/console.log"))
    action: dict[str, Any] = {"os-getConsoleOutput": {}}
    status, body = await api.ask("POST", f"/servers/{uuid}/action", json=action, roles="member")
    assert message(status, body).endswith("cannot read a file of the host")
