"""One lab for all tests here, with a host of each generation, and the daemons of these hosts in their hands."""

import contextlib
from collections.abc import AsyncIterator
from uuid import UUID

import pytest
import pytest_asyncio

from sev_agent.lab.cloud import Lab
from sev_agent.lab.platform.emulator.kind import Kind
from tests.e2e.agent_process import AgentProcess
from tests.e2e.cloud import Cloud
from tests.e2e.delays import FOLLOWED, line
from tests.e2e.downloads import StallingProxy
from tests.e2e.ear import Ear, listening
from tests.e2e.own_lab import own_lab, seen_from_outside
from tests.proxy import Proxy

SLOTS = 4
_LOG_LINES = 60


def pytest_configure(config: pytest.Config) -> None:
    config.stash[FOLLOWED] = []


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if seconds := config.stash[FOLLOWED]:
        terminalreporter.write_sep("-", "delays")
        terminalreporter.write_line(line(seconds))


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def lab() -> AsyncIterator[Lab]:
    async with own_lab("sev-e2e-", slots=SLOTS, platforms=(Kind.SEV, Kind.SEV_ES, Kind.SEV_SNP)) as lab:
        yield lab


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def cloud(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cloud]:
    async with seen_from_outside(lab, tmp_path_factory.mktemp("image")) as cloud:
        yield cloud


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def es_host(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cloud]:
    async with seen_from_outside(lab, tmp_path_factory.mktemp("image"), index=1) as cloud:
        yield cloud


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def snp_host(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cloud]:
    async with seen_from_outside(lab, tmp_path_factory.mktemp("image"), index=2) as cloud:
        yield cloud


@pytest_asyncio.fixture(loop_scope="session")
async def es_cloud(es_host: Cloud) -> AsyncIterator[Cloud]:
    """The host with SEV-ES, its daemon ready; what a test leaves is deleted, and the scheduler then leaves it alone."""
    async with _at_work(es_host):
        yield es_host


@pytest_asyncio.fixture(loop_scope="session")
async def snp_cloud(snp_host: Cloud) -> AsyncIterator[Cloud]:
    """The host with SEV-SNP, as ``es_cloud``."""
    async with _at_work(snp_host):
        yield snp_host


@pytest_asyncio.fixture(loop_scope="session")
async def agent(cloud: Cloud) -> AsyncIterator[AgentProcess]:
    """The daemon, ready and with its usual settings. What a test leaves is deleted, and must then be gone."""
    agent = cloud.agent
    await _usual(agent)
    agent.forget_log()
    yield agent
    print("\n".join(agent.said().splitlines()[-_LOG_LINES:]))  # noqa: T201 - pytest shows it where a test failed
    await _usual(agent)
    await _cleared(cloud)
    await cloud.dead_letters()


@contextlib.asynccontextmanager
async def _at_work(host: Cloud) -> AsyncIterator[None]:
    await _usual(host.agent)
    yield
    await _usual(host.agent)
    await _cleared(host)
    await host.agent.stop()


async def _cleared(cloud: Cloud) -> None:
    listed = [UUID(view["uuid"]) for view in await cloud.ask("list_instances")]
    for uuid in set(listed) - cloud.kept:
        await cloud.delete(uuid)
        assert await cloud.left(uuid) == []
    assert await cloud.domains() <= cloud.kept


async def _usual(agent: AgentProcess) -> None:
    if agent.is_running and not agent.has_defaults:
        await agent.stop()
    if not agent.is_running:
        await agent.start()
    await agent.wait_ready()


@pytest_asyncio.fixture(loop_scope="session")
async def ear(cloud: Cloud) -> AsyncIterator[Ear]:
    async with listening(cloud.broker) as ear:
        yield ear


@pytest_asyncio.fixture(loop_scope="session")
async def glance_proxy(cloud: Cloud) -> AsyncIterator[StallingProxy]:
    """Stands before Glance for a daemon whose ``glance__endpoint`` names it."""
    async with StallingProxy(cloud.lab.cloud.ports["glance"]) as proxy:
        yield proxy


@pytest_asyncio.fixture(loop_scope="session")
async def placement_proxy(cloud: Cloud) -> AsyncIterator[Proxy]:
    """Stands before Placement for a daemon whose ``placement__endpoint`` names it."""
    async with Proxy(cloud.lab.cloud.ports["placement"]) as proxy:
        yield proxy
