"""Real RabbitMQ, Keystone, Glance and Placement, started once for all tests by the lab's own means."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import aiohttp
import pytest

from sev_agent.config import ServiceSection
from sev_agent.lab import environment
from sev_agent.lab.accounts import Accounts
from sev_agent.lab.openstack import PORT_NAMES, OpenStack
from sev_agent.lab.progress import Silent
from sev_agent.lab.service import Service
from sev_agent.lab.state import free_ports
from sev_agent.lab.supervisor import Supervisor
from sev_agent.openstack.identity import NoIdentity
from sev_agent.openstack.placement import Placement
from tests.rabbitmq import RabbitNode, rabbitmq

CACHE = Path(os.environ.get("SEV_AGENT_LAB_CACHE", "/var/cache/sev-agent-lab"))
"""Where the services' virtual environment is kept between runs, shared with labs."""

T = TypeVar("T")


@pytest.fixture(scope="session")
def services_environment() -> Path:
    CACHE.mkdir(parents=True, exist_ok=True)
    return _run(lambda: environment.provide(CACHE, lambda _: None))


@pytest.fixture(scope="session")
def cloud(services_environment: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenStack]:
    """All three, authenticated by Keystone, with the accounts of a lab."""
    cloud = _openstack(services_environment, tmp_path_factory.mktemp("cloud"))
    cloud.prepare()
    with _running(cloud.directory, [cloud.keystone(), cloud.glance(), cloud.placement()]):
        _run(lambda: _accounts(cloud))
        yield cloud


@pytest.fixture(scope="session")
def placement_url(services_environment: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Placement that authenticates nobody: it is ready in a second, and needs nothing else."""
    with open_placement(services_environment, tmp_path_factory.mktemp("placement")) as url:
        yield url


@pytest.fixture(scope="session")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitNode]:
    with rabbitmq(tmp_path_factory.mktemp("rabbitmq")) as running:
        yield running


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


@pytest.fixture
def placement(session: aiohttp.ClientSession, placement_url: str) -> Placement:
    return Placement(session, NoIdentity(), ServiceSection(endpoint=placement_url))


@contextmanager
def open_placement(services_environment: Path, directory: Path) -> Iterator[str]:
    """One without Keystone, at the address that is given."""
    cloud = _openstack(services_environment, directory)
    cloud.prepare()
    path = cloud.directory / "placement" / "placement.conf"
    path.write_text(path.read_text().replace("auth_strategy = keystone", "auth_strategy = noauth2"))
    with _running(cloud.directory, [cloud.placement()]):
        yield cloud.placement_url


def _openstack(services_environment: Path, directory: Path) -> OpenStack:
    ports = dict(zip(PORT_NAMES, free_ports(len(PORT_NAMES)), strict=True))
    return OpenStack(directory=directory, environment=services_environment, ports=ports, password="lab-password")


async def _accounts(cloud: OpenStack) -> None:
    async with aiohttp.ClientSession() as session:
        await Accounts(session, cloud).ensure()


@contextmanager
def _running(directory: Path, services: list[Service]) -> Iterator[None]:
    supervisor = Supervisor(directory, Silent())
    try:
        _run(lambda: supervisor.start_side_by_side(services))
        yield
    finally:
        _run(lambda: supervisor.stop_all(services))


def _run(operation: Callable[[], Awaitable[T]]) -> T:
    """In a loop of its own that the tests' loops do not notice."""

    async def run() -> T:
        return await operation()

    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        return runner.run(run())
