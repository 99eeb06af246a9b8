"""Servers that are on their way for too long: lost requests, lost notifications, lost hosts."""

import asyncio
import re
from datetime import UTC, datetime, timedelta

import pytest

from sev_agent.config import UpkeepSection
from tests.e2e.waiting import eventually
from tests.integration.api.conftest import Api, StartApi, new_flavor
from tests.integration.api.fleet import PATIENCE

IMPATIENT = UpkeepSection(
    interval=0.2, schedule_deadline=1, schedule_attempts=2, transition_deadline=0.5, looks=3, call_timeout=1
)


@pytest.fixture
async def api(start_api: StartApi) -> Api:
    api = await start_api(upkeep=IMPATIENT)
    api.flavor = await new_flavor(api)
    return api


async def seen_after(api: Api, action: str, times: int) -> None:
    """Until that has come of so many looks after a server."""
    pattern = re.compile(rf'^sev_api_upkeep_total\{{action="{action}"\}} (\S+)$', re.MULTILINE)

    async def is_so() -> bool:
        async with api.session.get(f"{api.health_url}/metrics") as answer:
            found = pattern.search(await answer.text())
        return found is not None and float(found[1]) >= times

    await eventually(is_so, within=PATIENCE, what=f"{times} looks with the outcome {action}")


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


async def test_a_deletion_that_is_lost(api: Api) -> None:
    """A host that has it still, and is not at it, is asked again."""
    server = await api.created()
    told = (datetime.now(UTC) - timedelta(seconds=5)).isoformat()
    api.fleet.views[server] = {"uuid": server, "host": api.fleet.host, "state": "active", "updated_at": told}
    assert (await api.ask("DELETE", f"/servers/{server}"))[0] == 204
    for _ in range(2):
        order = await api.fleet.next_order()
        assert (order.method, order.uuid) == ("terminate_instance", server)
    del api.fleet.views[server]
    await api.wait_gone(server)


async def test_schedulers_that_are_away_for_long(api: Api) -> None:
    """Their queue keeps the request, so nothing is lost: it is not made again, and does not end in ERROR."""
    await api.fleet.scheduler.pause()
    status, body = await api.ask("POST", "/servers", json=api.wanted())
    assert status == 202
    server = body["server"]["id"]
    await seen_after(api, "waiting", IMPATIENT.schedule_attempts + 1)
    assert (await api.show(server))["status"] == "BUILD"
    await api.fleet.scheduler.resume()
    assert str((await api.fleet.next_scheduled()).instance.uuid) == server
    assert api.fleet.scheduled.empty()
    await api.fleet.builds(server)
    await api.wait(server, lambda shown: shown["status"] == "ACTIVE")


async def test_schedulers_that_are_late(api: Api) -> None:
    """A server of which they said nothing for too long is built all the same when they place it, and its fault goes."""
    server = await api.create()
    shown = await api.wait(server, lambda shown: shown["status"] == "ERROR")
    assert "no scheduler said anything" in shown["fault"]["message"]
    await api.fleet.scheduled_to(server)
    await api.wait(server, lambda shown: shown["status"] == "BUILD")
    await api.fleet.tells(server, "create.end", "active")
    assert "fault" not in await api.wait(server, lambda shown: shown["status"] == "ACTIVE")


async def test_a_host_that_cannot_work(api: Api) -> None:
    """One that answers, and takes nothing from its queue, has not lost the request: it says so, and does it later."""
    await api.fleet.work.pause()
    server = await api.create()
    await api.fleet.scheduled_to(server)
    shown = await api.wait(server, lambda shown: shown["status"] == "ERROR")
    assert f"host {api.fleet.host} takes no requests" in shown["fault"]["message"]
    await api.fleet.work.resume()
    await api.fleet.tells(server, "create.end", "active")
    await api.wait(server, lambda shown: shown["status"] == "ACTIVE")


@pytest.mark.parametrize(("known", "now", "status"), [("active", "stopped", "SHUTOFF"), ("error", "active", "ACTIVE")])
async def test_what_a_host_told_and_nobody_heard(start_api: StartApi, known: str, now: str, status: str) -> None:
    """A server on no way is compared with its host's word now and then, and is what its host says it is."""
    api = await start_api(upkeep=IMPATIENT.model_copy(update={"compare_interval": 0.5}))
    api.flavor = await new_flavor(api)
    server = await api.create()
    moment = datetime.now(UTC)
    view = {"uuid": server, "host": api.fleet.host, "state": known, "updated_at": moment.isoformat()}
    api.fleet.views[server] = view
    await api.fleet.tells(server, "create.end", known, at=moment)
    before = await api.wait(server, lambda shown: shown["status"] != "BUILD")
    await seen_after(api, "same", 2)
    assert await api.show(server) == before
    api.fleet.views[server] = view | {"state": now, "updated_at": (moment + timedelta(seconds=1)).isoformat()}
    await api.wait(server, lambda shown: shown["status"] == status)


async def test_a_host_that_is_away_from_a_server_on_no_way(start_api: StartApi) -> None:
    """What was known last stands."""
    api = await start_api(upkeep=IMPATIENT.model_copy(update={"compare_interval": 0.5}))
    api.flavor = await new_flavor(api)
    server = await api.create()
    await api.fleet.tells(server, "create.end", "active", host="gone-host")
    before = await api.wait(server, lambda shown: shown["status"] == "ACTIVE")
    await seen_after(api, "host_away", 2)
    assert await api.show(server) == before
