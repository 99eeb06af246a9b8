"""Servers that are on their way for too long: lost requests, lost notifications, lost hosts."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from sev_agent.config import UpkeepSection
from tests.integration.api.conftest import Api, StartApi, new_flavor

IMPATIENT = UpkeepSection(
    interval=0.2, schedule_deadline=1, schedule_attempts=2, transition_deadline=0.5, looks=3, call_timeout=1
)


@pytest.fixture
async def api(start_api: StartApi) -> Api:
    api = await start_api(upkeep=IMPATIENT)
    api.flavor = await new_flavor(api)
    return api


async def test_a_request_to_the_schedulers_that_is_lost(api: Api) -> None:
    """It is made again; after the last attempt the server is in ERROR, and says why."""
    server = await api.create()
    assert str((await api.fleet.next_scheduled()).instance.uuid) == server
    shown = await api.wait(server, lambda shown: shown["status"] == "ERROR")
    assert "handed to them 2 times" in shown["fault"]["message"]
    assert api.fleet.scheduled.empty()


async def test_one_of_several_processes_does_it(api: Api, start_api: StartApi) -> None:
    """Three processes on one database make a lost request again once, not three times."""
    for _ in range(2):
        await start_api(upkeep=IMPATIENT)
    server = await api.create()
    await api.fleet.next_scheduled()
    await api.wait(server, lambda shown: shown["status"] == "ERROR")
    assert api.fleet.scheduled.empty()


async def test_a_notification_that_is_lost(api: Api) -> None:
    """The host is asked, and what it answers counts."""
    server = await api.create()
    now = datetime.now(UTC).isoformat()
    api.fleet.views[server] = {"uuid": server, "host": api.fleet.host, "state": "active", "updated_at": now}
    await api.fleet.scheduled_to(server)
    shown = await api.wait(server, lambda shown: shown["status"] == "ACTIVE")
    assert shown["OS-EXT-SRV-ATTR:host"] == api.fleet.host


async def test_a_build_that_takes_long(api: Api) -> None:
    """A host that says that it builds is waited for, as long as it says so."""
    server = await api.create()
    begun = datetime.now(UTC)
    view = {"uuid": server, "host": api.fleet.host, "state": "building", "updated_at": begun.isoformat()}
    api.fleet.views[server] = view
    await api.fleet.scheduled_to(server)
    await asyncio.sleep(IMPATIENT.transition_deadline * (IMPATIENT.looks + 2))
    assert (await api.show(server))["status"] == "BUILD"
    api.fleet.views[server] = view | {"state": "active", "updated_at": (begun + timedelta(seconds=1)).isoformat()}
    await api.wait(server, lambda shown: shown["status"] == "ACTIVE")


async def test_a_host_that_knows_nothing_of_it(api: Api) -> None:
    """ERROR, with that reason."""
    server = await api.create()
    await api.fleet.scheduled_to(server)
    shown = await api.wait(server, lambda shown: shown["status"] == "ERROR")
    assert f"host {api.fleet.host} does not know it" in shown["fault"]["message"]


async def test_a_host_that_is_away(api: Api) -> None:
    """ERROR, with the host and what came of asking it."""
    server = await api.create()
    await api.fleet.scheduled_to(server, "gone-host")
    shown = await api.wait(server, lambda shown: shown["status"] == "ERROR")
    assert "host gone-host has not answered" in shown["fault"]["message"]


async def test_a_deletion_whose_end_is_lost(api: Api) -> None:
    """A host that does not have it any more has deleted it."""
    server = await api.created()
    await api.ask("DELETE", f"/servers/{server}")
    assert (await api.fleet.next_order()).method == "terminate_instance"
    await api.wait_gone(server)


async def test_a_deletion_for_a_host_that_left(api: Api) -> None:
    """It ends where nobody is there to carry it out: at once without a queue, else after some silence."""
    server = await api.create()
    await api.fleet.tells(server, "create.end", "active", host="gone-host")
    await api.wait(server, lambda shown: shown["status"] == "ACTIVE")
    assert (await api.ask("DELETE", f"/servers/{server}"))[0] == 204
    await api.wait_gone(server)


async def test_a_deletion_that_nobody_speaks_of(api: Api) -> None:
    """Without a word of anyone it is gone after the deadline; if it lives after all, it is deleted there."""
    server = await api.create()
    await api.ask("DELETE", f"/servers/{server}")
    await api.wait_gone(server)
    await api.fleet.tells(server, "create.end", "active")
    order = await api.fleet.next_order()
    assert (order.method, order.uuid) == ("terminate_instance", server)


async def test_a_stop_that_is_lost(api: Api) -> None:
    """A host that has nothing to do is believed in the end: the server is what it was."""
    server = await api.created()
    told = (datetime.now(UTC) - timedelta(seconds=5)).isoformat()
    api.fleet.views[server] = {"uuid": server, "host": api.fleet.host, "state": "active", "updated_at": told}
    assert (await api.ask("POST", f"/servers/{server}/action", json={"os-stop": None}))[0] == 202
    assert (await api.fleet.next_order()).method == "stop_instance"
    shown = await api.wait(server, lambda shown: shown["OS-EXT-STS:task_state"] is None)
    assert shown["status"] == "ACTIVE"
