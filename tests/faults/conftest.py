"""A lab whose every service can be made to fail, the daemon that leans on them, and the count of what was tried."""

import asyncio
import os
import random
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import pytest
import pytest_asyncio

from sev_agent.lab.cloud import Lab
from tests.e2e.agent_process import READY_SECONDS, AgentProcess
from tests.e2e.cloud import Cloud, run
from tests.e2e.ear import Ear, listening
from tests.e2e.own_lab import own_lab, seen_from_outside
from tests.e2e.waiting import eventually
from tests.faults.invariants import QUIET_SECONDS, bridge_of, invariants
from tests.faults.services import Between, Services, between
from tests.faults.tally import TALLY, Tally

SLOTS = 6
_LOG_LINES = 80
_SEED_VARIABLE = "SEV_AGENT_FAULTS_SEED"


def pytest_configure(config: pytest.Config) -> None:
    given = os.environ.get(_SEED_VARIABLE)
    config.stash[TALLY] = Tally(seed=int(given) if given else random.randrange(2**32))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    terminalreporter.write_sep("-", "faults")
    tally = config.stash[TALLY]
    terminalreporter.write_line(tally.line())
    terminalreporter.write_line(tally.delays())
    terminalreporter.write_line(f"chance followed {_SEED_VARIABLE}={tally.seed}")


@pytest.fixture(scope="session")
def fault_seed(tally: Tally) -> int:
    """What all chance here follows from: ``SEV_AGENT_FAULTS_SEED``, or a new one for each run; it is printed."""
    return tally.seed


@pytest.fixture(scope="session")
def tally(pytestconfig: pytest.Config) -> Tally:
    """Where each test notes what it tried."""
    return pytestconfig.stash[TALLY]


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def lab() -> AsyncIterator[Lab]:
    async with own_lab("sev-faults-", slots=SLOTS) as lab:
        yield lab


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def cloud(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cloud]:
    async with seen_from_outside(lab, tmp_path_factory.mktemp("image")) as cloud:
        bridge = bridge_of(cloud)
        await _ip("link", "add", bridge, "type", "bridge")
        try:
            await _ip("link", "set", bridge, "up")
            yield cloud
            if cloud.agent.is_running:
                assert await cloud.agent.stop() == 0
        finally:
            await _ip("link", "delete", bridge)


async def _ip(*arguments: str) -> None:
    result = await run("ip", *arguments)
    assert result.status == 0, result.errors


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def proxies(lab: Lab) -> AsyncIterator[Between]:
    async with between(lab) as proxies:
        yield proxies


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def services(cloud: Cloud) -> AsyncIterator[Services]:
    services = Services(cloud=cloud)
    yield services
    await services.heal()


@dataclass(kw_only=True)
class World:
    """All of it: what a test breaks, what it asks for, and what must come of it."""

    cloud: Cloud
    agent: AgentProcess
    proxies: Between
    services: Services
    tally: Tally
    name: str = ""
    asked: dict[UUID, set[str]] = field(default_factory=dict)

    @property
    def usual(self) -> dict[str, str]:
        """The daemon's settings here: all its connections go through the proxies; blank guests never shut down."""
        return {**self.proxies.settings(self.cloud.lab), "builds__guest_shutdown_timeout": "1"}

    async def start(self, **settings: Any) -> None:
        """Start the daemon, and wait until it takes work."""
        await self.agent.launch(**{**self.usual, **settings})
        await self.works()

    async def works(self, *, within: float = READY_SECONDS) -> None:
        """Wait until the daemon says that it is ready, and takes work."""
        await self.agent.wait_ready(within=within)

        async def consumes() -> bool:
            return await self.cloud.consumers() == 1

        await eventually(consumes, within=within, what="the work queue has its consumer")

    async def restart(self, **settings: Any) -> None:
        if self.agent.is_running:
            assert await self.agent.stop() == 0
        await self.start(**settings)

    async def have(self, **settings: Any) -> None:
        """Have a daemon with ``settings`` beside the usual ones: this one, or another."""
        if self.agent.has({**self.usual, **settings}):
            await self.works()
        else:
            await self.restart(**settings)

    def note(self) -> None:
        """Count a fault that was brought about."""
        self.tally.faults.append(self.name)

    def request(self, **changes: Any) -> dict[str, Any]:
        """A good request of a guest with a tap device."""
        nic = {"type": "bridge", "source": bridge_of(self.cloud)}
        return self.cloud.request(**{"networks": [nic], **changes})

    async def build(self, **changes: Any) -> UUID:
        """Have a good guest built, and return when it runs."""
        request = self.request(**changes)
        uuid = UUID(request["uuid"])
        await self.cloud.order("build_and_run_instance", instance=request)
        await self.cloud.reached(uuid, "active")
        self.asked[uuid] = {"active"}
        return uuid

    async def begin(self, **changes: Any) -> UUID:
        """Ask for a guest, by a message that nobody answers; it must end in one guest, or in one error."""
        request = self.request(**changes)
        uuid = UUID(request["uuid"])
        self.asked[uuid] = {"active", "error"}
        await self.cloud.cast("build_and_run_instance", instance=request)
        return uuid

    async def delete(self, *uuids: UUID) -> None:
        """Ask for deletions."""
        for uuid in uuids:
            self.asked[uuid] = {"deleted"}
            await self.cloud.cast("terminate_instance", instance_uuid=str(uuid))

    async def delete_all(self) -> list[UUID]:
        """Ask for the deletion of every guest there is."""
        listed = [UUID(view["uuid"]) for view in await self.cloud.ask("list_instances")]
        await self.delete(*listed)
        return listed

    async def power(self, method: str, uuid: UUID, state: str, **arguments: str) -> None:
        """Ask for a change after which the guest should be in ``state``."""
        self.asked[uuid] = {state}
        await self.cloud.cast(method, instance_uuid=str(uuid), **arguments)

    async def show_log(self) -> None:
        """Print the end of what the daemon said; pytest shows it where a test failed."""
        said = (await asyncio.to_thread(self.agent.said)).splitlines()
        print("\n".join(said[-_LOG_LINES:]))  # noqa: T201 - that is what it is for

    async def heal(self) -> None:
        """End every fault, and wait until the daemon takes work."""
        self.proxies.heal()
        await self.services.heal()
        await self.cloud.broker.wait_up(30)
        if not self.agent.is_running:
            await self.agent.launch(**self.usual)
        await self.works()

    async def recorded(self) -> None:
        """Wait until the daemon has each request for a guest in its journal; what is over stays there for a day."""

        async def all_there() -> bool:
            return all(self.cloud.files(uuid).record.exists() for uuid in self.asked)

        await eventually(all_there, within=QUIET_SECONDS, what="every request for a guest is in the journal")

    async def hold(self, **given: Any) -> Mapping[UUID, str]:
        """The invariants, now that things come to rest."""
        states = await invariants(self.cloud, self.asked, **given)
        self.tally.invariants += 1
        return states


@pytest_asyncio.fixture(loop_scope="session")
async def world(
    cloud: Cloud, proxies: Between, services: Services, tally: Tally, request: pytest.FixtureRequest
) -> AsyncIterator[World]:
    """A lab that is well, with a daemon that is ready. At the end all is well again, and no guest is left."""
    world = World(
        cloud=cloud, agent=cloud.agent, proxies=proxies, services=services, tally=tally, name=request.node.name
    )
    await world.heal()
    world.agent.forget_log()
    yield world
    await world.show_log()
    await world.heal()
    listed = await world.delete_all()
    await invariants(cloud, {uuid: {"deleted"} for uuid in listed})
    await cloud.dead_letters()


@pytest_asyncio.fixture(loop_scope="session")
async def ear(cloud: Cloud) -> AsyncIterator[Ear]:
    async with listening(cloud.broker) as ear:
        yield ear
