"""One lab with four hosts, two APIs and two schedulers for all tests here."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace

import aiohttp
import pytest
import pytest_asyncio
from pydantic import SecretStr

from sev_agent.config import AuthSection, ServiceSection
from sev_agent.lab.accounts import admin
from sev_agent.lab.cloud import Lab
from sev_agent.lab.openrc import users
from sev_agent.lab.platform.emulator.kind import Kind
from sev_agent.openstack.compute_api import ComputeApi
from sev_agent.openstack.glance import Glance
from sev_agent.openstack.identity import KeystoneIdentity
from sev_agent.openstack.placement import Placement
from sev_agent.sev import tags
from tests.e2e.fleet.fleet import PLATFORMS, SLOTS, Fleet
from tests.e2e.fleet.tenant import SETTLED_SECONDS, Tenant
from tests.e2e.own_lab import cache, on_its_broker, own_lab
from tests.e2e.waiting import eventually
from tests.images import make_qcow2
from tests.postgresql import PostgresServer, postgresql

PROCESSES = 2
_LOG_LINES = 40


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def fleet_lab() -> AsyncIterator[Lab]:
    platforms = tuple(map(Kind, PLATFORMS))
    async with own_lab("sev-fleet-", slots=SLOTS, platforms=platforms, agents=True, controllers=PROCESSES) as lab:
        yield lab


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def whole_fleet(fleet_lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Fleet]:
    lab = fleet_lab
    async with contextlib.AsyncExitStack() as closing:
        session = await closing.enter_async_context(aiohttp.ClientSession())
        _, rpc = await closing.enter_async_context(on_its_broker(lab))
        known = users(lab.cloud)

        def tenant(name: str) -> Tenant:
            user = known[name]
            own: AuthSection = admin(lab.cloud).model_copy(
                update={"username": user.name, "project_name": user.project, "password": SecretStr(user.password)}
            )
            return Tenant(session, KeystoneIdentity(session, own), lab.compute_urls)

        operator = KeystoneIdentity(session, admin(lab.cloud))
        glance = Glance(session, operator, ServiceSection(endpoint=lab.glance_url))
        image = await glance.create_image("blank", disk_format="qcow2", visibility="public", properties=tags.IMAGE)
        path = make_qcow2(tmp_path_factory.mktemp("image") / "blank.qcow2")
        await glance.upload(image.id, path, total_timeout=SETTLED_SECONDS)
        yield Fleet(
            lab=lab,
            placement=Placement(session, operator, ServiceSection(endpoint=lab.placement_url)),
            rpc=rpc,
            operator=tenant("admin"),
            red=tenant("red-member"),
            blue=tenant("blue-member"),
            reader=tenant("red-reader"),
            image=image.id,
            flavor=await _make_flavor(lab, session),
        )


async def _make_flavor(lab: Lab, session: aiohttp.ClientSession) -> str:
    operator = KeystoneIdentity(session, admin(lab.cloud))
    compute = ComputeApi(session, operator, ServiceSection(endpoint=lab.compute_urls[0]))
    made = await compute.create_flavor("tiny", vcpus=1, ram=64, disk=1, is_public=True, extra_specs=tags.flavor_tags())
    return made.id


@pytest_asyncio.fixture(loop_scope="session")
async def fleet(whole_fleet: Fleet) -> AsyncIterator[Fleet]:
    """Every process up, no server. What a test leaves is deleted, and all counts must then be zero."""
    await whole_fleet.heal()
    yield whole_fleet
    _show_logs(whole_fleet.lab)
    await whole_fleet.heal()
    await whole_fleet.empty()
    await eventually(whole_fleet.fleet_is_free, within=SETTLED_SECONDS, what="no slot is taken, no domain runs")


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    with postgresql() as server:
        yield server


@pytest_asyncio.fixture(loop_scope="session")
async def fleet_on_postgresql(fleet: Fleet, postgres: PostgresServer) -> AsyncIterator[Fleet]:
    """The same fleet, whose APIs have another database meanwhile."""
    apis = [name for name in fleet.lab.log_names() if name.startswith("api")]
    lab = Lab(fleet.lab.directory, cache=cache(), database_url=await asyncio.to_thread(postgres.new_database))
    await fleet.kill(*apis)
    await lab.up()
    moved = replace(fleet, lab=lab, flavor=await _make_flavor(lab, fleet.red.session))
    yield moved
    await moved.heal()
    await moved.empty()
    # Started again on their own database by whoever comes next.
    await moved.kill(*apis)


def _show_logs(lab: Lab) -> None:
    for name in lab.log_names():
        if name.startswith(("api", "scheduler", "agent")):
            lines = lab.log_path(name).read_text(errors="replace").splitlines()[-_LOG_LINES:]
            print(f"--- {name}", *lines, sep="\n")  # noqa: T201 - pytest shows it where a test failed
