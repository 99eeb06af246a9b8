"""The life of a server as its owner sees it, from the request to its end."""

import asyncio
from datetime import UTC, datetime, timedelta

from tests.integration.api.conftest import Api


async def test_from_request_to_end(api: Api) -> None:
    """Created, scheduled, active on its host, deleted, gone."""
    server = await api.create(metadata={"purpose": "test"})
    shown = await api.show(server)
    assert (shown["status"], shown["OS-EXT-STS:task_state"], shown["OS-EXT-SRV-ATTR:host"]) == (
        "BUILD",
        "scheduling",
        None,
    )

    await api.fleet.scheduled_to(server)
    shown = await api.wait(server, lambda shown: shown["OS-EXT-STS:task_state"] == "spawning")
    assert shown["OS-EXT-SRV-ATTR:host"] == api.fleet.host

    await api.fleet.builds(server)
    shown = await api.wait(server, lambda shown: shown["status"] == "ACTIVE")
    assert (shown["OS-EXT-STS:power_state"], shown["OS-EXT-STS:task_state"]) == (1, None)
    assert shown["metadata"] == {"purpose": "test"}
    assert shown["flavor"]["extra_specs"] == {"hw:mem_encryption": "true"}

    assert await api.ask("DELETE", f"/servers/{server}") == (204, None)
    order = await api.fleet.next_order()
    assert (order.method, order.uuid) == ("terminate_instance", server)
    assert (await api.show(server))["OS-EXT-STS:task_state"] == "deleting"
    await api.fleet.tells(server, "delete.end", "deleted")
    await api.wait_gone(server)


async def test_what_the_scheduler_gets(api: Api) -> None:
    """All that the host must know, and the request's own identifier and owner."""
    _, body = await api.ask("POST", "/servers", json=api.wanted(name="web 1", user_data="aGk="))
    context, asked = await asyncio.wait_for(api.fleet.scheduled.get(), 30)
    instance = asked.instance
    assert (str(instance.uuid), instance.name, instance.user_data) == (body["server"]["id"], "web 1", "aGk=")
    assert instance.project_id == context.project_id == api.tenants.projects["red"]
    assert instance.flavor.extra_specs == {"hw:mem_encryption": "true"}
    assert (asked.host, asked.generation) == (None, "amd-sev")
    assert context.request_id.startswith("req-")


async def test_power(api: Api) -> None:
    """Stop, start, soft and hard reboot, each with its states on the way; the request id reaches the host."""
    server = await api.created()
    for action, body, method, status, event, state, after in (
        ("os-stop", None, "stop_instance", "ACTIVE", "stop.end", "stopped", "SHUTOFF"),
        ("os-start", None, "start_instance", "SHUTOFF", "start.end", "active", "ACTIVE"),
        ("reboot", {"type": "SOFT"}, "reboot_instance", "REBOOT", "reboot.end", "active", "ACTIVE"),
        ("reboot", {"type": "HARD"}, "reboot_instance", "HARD_REBOOT", "reboot.end", "active", "ACTIVE"),
    ):
        assert await api.ask("POST", f"/servers/{server}/action", json={action: body}) == (202, None)
        order = await api.fleet.next_order()
        assert (order.method, order.uuid) == (method, server)
        if body:
            assert order.arguments["reboot_type"] == body["type"]
        shown = await api.show(server)
        assert shown["status"] == status
        assert shown["OS-EXT-STS:task_state"] is not None
        await api.fleet.tells(server, event, state)
        await settled(api, server, after)


async def settled(api: Api, server: str, status: str) -> None:
    await api.wait(server, lambda shown: (shown["status"], shown["OS-EXT-STS:task_state"]) == (status, None))


async def test_notifications_out_of_order(api: Api) -> None:
    """What is older than what is known changes nothing, and neither does anything that comes twice."""
    server = await api.created()
    now = datetime.now(UTC)
    await api.fleet.tells(server, "stop.end", "stopped", at=now + timedelta(seconds=2))
    await api.wait(server, lambda shown: shown["status"] == "SHUTOFF")
    await api.fleet.tells(server, "create.end", "active", at=now + timedelta(seconds=1))
    await api.fleet.tells(server, "stop.end", "stopped", at=now + timedelta(seconds=2))
    await api.fleet.scheduled_to(server, "another-host")
    await api.fleet.tells(server, "start.end", "active", at=now + timedelta(seconds=3))
    shown = await api.wait(server, lambda shown: shown["status"] == "ACTIVE")
    assert shown["OS-EXT-SRV-ATTR:host"] == api.fleet.host


async def test_no_host(api: Api) -> None:
    """ERROR, with the scheduler's explanation for everyone, and what each host said for administrators."""
    server = await api.create()
    tried = ({"host": "h1", "code": "exhausted", "message": "no slot"},)
    await api.fleet.no_host(server, "no valid host: 3 known, 0 with a free slot", tried)
    shown = await api.wait(server, lambda shown: shown["status"] == "ERROR")
    assert shown["fault"]["message"] == "no valid host: 3 known, 0 with a free slot (add hosts)"
    assert shown["fault"]["details"] == "h1: exhausted: no slot"
    mine = await api.show(server, user="alice")
    assert "details" not in mine["fault"]
    assert "OS-EXT-SRV-ATTR:host" not in mine
    assert (await api.ask("DELETE", f"/servers/{server}"))[0] == 204
    await api.wait_gone(server)


async def test_the_next_host(api: Api) -> None:
    """A build that another host may cure is no error: it waits for the scheduler's next choice."""
    server = await api.create()
    await api.fleet.scheduled_to(server, "first")
    failed = {"code": "exhausted", "message": "no slot", "step": "start"}
    await api.fleet.tells(server, "create.error", "rescheduled", host="first", fault=failed, rescheduled=True)
    await api.wait(server, lambda shown: shown["OS-EXT-STS:task_state"] == "scheduling")
    tried = ({"host": "first", "code": "exhausted", "message": "no slot"},)
    await api.fleet.scheduled_to(server, tried=tried)
    await api.fleet.tells(server, "create.end", "active")
    shown = await api.wait(server, lambda shown: shown["status"] == "ACTIVE")
    assert shown["OS-EXT-SRV-ATTR:host"] == api.fleet.host


async def test_a_build_that_fails(api: Api) -> None:
    """ERROR with the host's reason; its deletion reaches the host, which has a record of it."""
    server = await api.create()
    await api.fleet.scheduled_to(server)
    fault = {
        "code": "image.backing_file",
        "message": "the image has a backing file",
        "step": "image",
        "remedy": "flatten it",
    }
    await api.fleet.tells(server, "create.error", "error", fault=fault)
    shown = await api.wait(server, lambda shown: shown["status"] == "ERROR")
    assert shown["fault"]["message"] == "the image has a backing file (flatten it)"
    await api.ask("DELETE", f"/servers/{server}")
    assert (await api.fleet.next_order()).method == "terminate_instance"


async def test_deleted_before_it_has_a_host(api: Api) -> None:
    """The first word of where it is brings the deletion there, once."""
    server = await api.create()
    assert (await api.ask("DELETE", f"/servers/{server}"))[0] == 204
    assert (await api.show(server))["OS-EXT-STS:task_state"] == "deleting"
    await api.fleet.scheduled_to(server)
    order = await api.fleet.next_order()
    assert (order.method, order.uuid) == ("terminate_instance", server)
    await api.fleet.tells(server, "create.start", "building")
    await api.fleet.tells(server, "delete.end", "deleted")
    await api.wait_gone(server)
    assert api.fleet.orders.empty()
    await api.fleet.tells(server, "create.end", "active", host="elsewhere")


async def test_deleted_and_never_scheduled(api: Api) -> None:
    """Where no host was found for it, it is gone at once."""
    server = await api.create()
    await api.ask("DELETE", f"/servers/{server}")
    await api.fleet.no_host(server, "no valid host")
    await api.wait_gone(server)


async def test_console(api: Api) -> None:
    """Its last lines, from its host; before there is one, 409."""
    server = await api.create()
    asked = {"os-getConsoleOutput": {"length": 1}}
    assert (await api.ask("POST", f"/servers/{server}/action", json=asked))[0] == 409
    await api.fleet.builds(server)
    await api.wait(server, lambda shown: shown["status"] == "ACTIVE")
    api.fleet.views[server] = {"console": "one\ntwo\n"}
    path = f"/servers/{server}/action"
    assert await api.ask("POST", path, json=asked) == (200, {"output": "two\n"})
    assert await api.ask("POST", path, json={"os-getConsoleOutput": {}}) == (200, {"output": "one\ntwo\n"})


async def test_a_guest_that_stops_by_itself(api: Api) -> None:
    """What the host observes without being asked shows."""
    server = await api.created()
    await api.fleet.tells(server, "stop.end", "stopped", observed=True)
    shown = await api.wait(server, lambda shown: shown["status"] == "SHUTOFF")
    assert shown["OS-EXT-STS:power_state"] == 4
