"""The whole way: from the compute API by way of a scheduler to the right one of several hosts."""

import asyncio
import json
from collections import Counter
from collections.abc import Mapping
from typing import Any
from uuid import UUID, uuid4

import aiohttp
import pytest

from sev_agent.subprocesses import ProgramFailed
from tests.e2e.cloud import run
from tests.e2e.fleet.fleet import TOTAL, WITH_SLOTS, Fleet
from tests.e2e.fleet.tenant import Tenant
from tests.e2e.waiting import eventually

pytestmark = pytest.mark.asyncio(loop_scope="session")

CREATES = 50
STORM_SECONDS = 240.0
STOCK_SECONDS = 120.0


async def test_the_stock_command_makes_an_encrypted_server(fleet: Fleet) -> None:
    """Created, waited for, shown and deleted with ``openstack``; it runs encrypted on the host that is told, once."""
    stock = fleet.lab.stock_client("red-member")
    image = ("--flavor", "tiny", "--image", str(fleet.image))
    created = await stock.ask("server", "create", *image, "--no-network", "--wait", "stock", timeout=STOCK_SECONDS)
    assert created["status"] == "ACTIVE"
    uuid = UUID(created["id"])
    host = (await fleet.operator.server(uuid))["OS-EXT-SRV-ATTR:host"]
    assert {name for name, guests in (await fleet.running()).items() if uuid in guests} == {host}
    domain = await run("virsh", "--connect", fleet.host(host).uri, "dumpxml", f"instance-{uuid}")
    assert "<launchSecurity type='sev'>" in domain.output
    assert await fleet.used() == 1
    await stock.run("server", "delete", "--wait", str(uuid), timeout=STOCK_SECONDS)
    await eventually(fleet.fleet_is_free, within=STOCK_SECONDS, what="the slot is free again")


async def test_fifty_creates_for_fifteen_slots(fleet: Fleet) -> None:
    """Of 50 at once by two tenants through two APIs and schedulers exactly 15 run, and each other says why not."""
    await storm(fleet)


async def test_fifty_creates_while_processes_are_killed(fleet_on_postgresql: Fleet) -> None:
    """SIGKILL of an API and a scheduler in the middle changes none of the sums; the APIs share a PostgreSQL here.

    Who got no answer asks the other API.
    """
    await storm(fleet_on_postgresql, "api-2", "scheduler-2")


async def storm(fleet: Fleet, *killed: str) -> None:
    """Fifty creates, the processes ``killed`` in the middle; then the sums, and everything deleted."""
    answered = asyncio.Event()
    accepted: list[UUID] = []

    async def create(number: int) -> None:
        tenant = (fleet.red, fleet.blue)[number % 2]
        try:
            uuid = await fleet.create(tenant, f"storm-{number}", api=number // 2)
        except aiohttp.ClientError:
            uuid = await fleet.create(tenant, f"storm-{number}", api=0)
        accepted.append(uuid)
        if len(accepted) >= CREATES // 3:
            answered.set()

    async with asyncio.TaskGroup() as creates:
        for number in range(CREATES):
            creates.create_task(create(number))
        await answered.wait()
        await fleet.kill(*killed)
    await fleet.heal()

    servers = await settled(fleet)
    # A request whose answer was lost with its API may have been carried out all the same, or be in ERROR for that.
    assert set(accepted) <= {UUID(server["id"]) for server in servers}
    assert len(servers) == CREATES or killed
    sums = Counter(server["status"] for server in servers)
    assert sums == {"ACTIVE": TOTAL, "ERROR": len(servers) - TOTAL}
    for server in servers:
        if server["status"] == "ERROR" and UUID(server["id"]) in accepted:
            assert "no valid host was found" in server["fault"]["message"], server
            assert "0 with a free amd-sev slot" in server["fault"]["message"], server
    assert await fleet.used() == TOTAL
    running = await fleet.running()
    assert {name: len(guests) for name, guests in running.items() if guests} == dict.fromkeys(WITH_SLOTS, 5)
    assert set().union(*running.values()) == {UUID(s["id"]) for s in servers if s["status"] == "ACTIVE"}

    await fleet.empty()
    await eventually(fleet.fleet_is_free, within=STORM_SECONDS, what="every slot is free again")


async def settled(fleet: Fleet) -> list[Mapping[str, Any]]:
    async def look() -> list[Mapping[str, Any]] | None:
        found = await fleet.operator.servers(all_tenants="1")
        return None if any(server["status"] == "BUILD" for server in found) else found

    found = await eventually(look, within=STORM_SECONDS, what="no server is in BUILD any more", every=0.5)
    assert found is not None
    return found


async def test_a_host_whose_daemon_is_dead_is_not_chosen(fleet: Fleet) -> None:
    """Guests go to the others; who insists on the dead one is told that it is not alive, and so says ``hosts``."""
    await fleet.kill("agent-compute-1")
    await fleet.takes_work("compute-1", is_so=False)
    some = [await fleet.create(fleet.red, f"spread-{number}") for number in range(3)]
    assert {server["status"] for server in await fleet.red.settled(*some)} == {"ACTIVE"}
    chosen = {(await fleet.operator.server(uuid))["OS-EXT-SRV-ATTR:host"] for uuid in some}
    assert chosen == {"compute-2", "compute-3"}

    forced = await fleet.create(fleet.operator, "forced", availability_zone="nova:compute-1")
    await fleet.operator.settled(forced)
    shown = await fleet.lab.stock_client("admin").ask("server", "show", str(forced))
    assert shown["status"] == "ERROR"
    assert "0 alive" in shown["fault"]["message"]

    told = {host["host"]: host for host in await hosts(fleet)}
    assert {name: host["alive"] for name, host in told.items() if name in WITH_SLOTS} == {
        "compute-1": False,
        "compute-2": True,
        "compute-3": True,
    }


async def hosts(fleet: Fleet) -> list[dict[str, Any]]:
    program = fleet.lab.directory / "bin/sev-agent"
    told = await run(program, "hosts", "--json", "--config", str(fleet.lab.scheduler_config))
    assert told.status == 0, told.errors
    found: list[dict[str, Any]] = json.loads(told.output)
    return found


async def test_a_host_without_sev_is_never_chosen(fleet: Fleet) -> None:
    """It is known, and not of the node type; a request for it alone is refused with that reason."""
    (plain,) = [host for host in await hosts(fleet) if host["host"] not in WITH_SLOTS]
    assert (plain["node_type"], plain["limit"]) == (None, 0)
    forced = await fleet.create(fleet.operator, "forced", availability_zone=f"nova:{plain['host']}")
    (server,) = await fleet.operator.settled(forced)
    assert server["status"] == "ERROR"
    assert "0 of node type sev" in server["fault"]["message"]


async def test_a_reader_looks_and_changes_nothing(fleet: Fleet) -> None:
    """The stock command tells that the role is missing; nothing is created."""
    image = ("--flavor", "tiny", "--image", str(fleet.image))
    with pytest.raises(ProgramFailed) as refused:
        await fleet.lab.stock_client("red-reader").run("server", "create", *image, "--no-network", "never")
    assert "403" in refused.value.stderr
    assert "member" in refused.value.stderr
    assert await fleet.reader.servers() == []


async def test_a_tenant_does_not_see_anothers(fleet: Fleet) -> None:
    """Neither listed nor named nor guessed at: what is another project's answers as what does not exist."""
    uuid = await fleet.create(fleet.red, "one of red")
    assert await fleet.blue.servers() == []
    for method, path, body in (
        ("GET", f"/servers/{uuid}", None),
        ("DELETE", f"/servers/{uuid}", None),
        ("POST", f"/servers/{uuid}/action", {"reboot": {"type": "HARD"}}),
        ("PUT", f"/servers/{uuid}", {"server": {"name": "one of blue"}}),
    ):
        theirs = await fleet.blue.ask(method, path, body)
        nobodys = await fleet.blue.ask(method, path.replace(str(uuid), other := str(uuid4())), body)
        assert (theirs.status, nobodys.status) == (404, 404)
        assert str(theirs.body).replace(str(uuid), other) == str(nobodys.body)
    (mine,) = await fleet.red.settled(uuid)
    assert (mine["name"], mine["status"]) == ("one of red", "ACTIVE")


async def test_a_wrong_token_is_refused(fleet: Fleet) -> None:
    """401, by every API process, whatever is asked."""

    class Stranger:
        async def token(self) -> str:
            return "gAAAAABnotakeystonetoken"

    for api in range(2):
        stranger = Tenant(fleet.red.session, Stranger(), fleet.red.urls)  # type: ignore[arg-type]
        assert (await stranger.ask("GET", "/servers", api=api)).status == 401
