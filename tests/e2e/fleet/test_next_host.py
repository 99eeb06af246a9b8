"""What becomes of a request that a host could not carry out, though another may."""

import asyncio

import pytest

from tests.e2e.fleet.fleet import WITH_SLOTS, Fleet
from tests.e2e.waiting import eventually

pytestmark = pytest.mark.asyncio(loop_scope="session")

RELEASE_SECONDS = 120.0


async def test_a_host_that_fails_is_left_for_the_next(fleet: Fleet) -> None:
    """The emptier hosts are tried first and fail; the server runs on the third, and no slot of the others is taken."""
    first = await fleet.create(fleet.operator, "first", availability_zone="nova:compute-3")
    assert (await fleet.operator.settled(first))[0]["status"] == "ACTIVE"
    for name in ("compute-1", "compute-2"):
        await asyncio.to_thread(fleet.host(name).failures.arm, "hardware-error")
    second = await fleet.create(fleet.red, "second")
    (server,) = await fleet.red.settled(second)
    assert server["status"] == "ACTIVE", server
    assert (await fleet.operator.server(second))["OS-EXT-SRV-ATTR:host"] == "compute-3"

    async def counted() -> bool:
        return await fleet.used() == 2

    await eventually(counted, within=RELEASE_SECONDS, what="the claims on the hosts that failed are released")


async def test_when_every_host_fails_each_ones_reason_is_told(fleet: Fleet) -> None:
    """After three hosts the server is in ERROR, and ``openstack server show`` tells what each of them said.

    Who each of them is, is told to the operator only.
    """
    for name in WITH_SLOTS:
        await asyncio.to_thread(fleet.host(name).failures.arm, "resource-limit")
    uuid = await fleet.create(fleet.red, "nowhere")
    await fleet.red.settled(uuid)
    shown = await fleet.lab.stock_client("red-member").ask("server", "show", str(uuid))
    assert shown["status"] == "ERROR"
    told = (await fleet.operator.server(uuid))["fault"]["message"]
    for number, name in enumerate(WITH_SLOTS, start=1):
        assert f"host {number} said" in shown["fault"]["message"]
        assert name not in shown["fault"]["message"]
        assert f"{name} said" in told
    assert "Required firmware resource depleted" in shown["fault"]["message"]
    await eventually(fleet.fleet_is_free, within=RELEASE_SECONDS, what="no slot is taken")
