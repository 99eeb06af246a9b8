"""Whole daemons count for their host's name, but for one that is another daemon's."""

import contextlib
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from sev_agent.openstack.placement import Placement
from tests.host_daemon import HOST_TAKEN, HostDaemon, configured, host_daemon
from tests.integration.compute.conftest import OVERHEAD, merged
from tests.libvirt_host import SEV, domain_xml
from tests.rabbitmq import RabbitNode, free_port


def _configured(directory: Path, guest: UUID, settings: Mapping[str, Any]) -> Path:
    """libvirt's test driver keeps what it has in the daemon's own process: each daemon has guests of its own."""
    directory.mkdir()
    domains = directory / "libvirt.xml"
    domains.write_text(f"<node>{domain_xml(guest, security=SEV)}</node>")
    libvirt = f"test://{domains}"
    return configured(directory / "agent.toml", state_dir=directory / "state", libvirt=libvirt, **settings)


@contextlib.asynccontextmanager
async def _daemon(directory: Path, **settings: Any) -> AsyncIterator[tuple[HostDaemon, UUID]]:
    """A daemon on a libvirt of its own, and the guest in it."""
    guest = uuid4()
    async with host_daemon(_configured(directory, guest, settings)) as daemon:
        yield daemon, guest


async def _counted(placement: Placement, host: str) -> tuple[Any, Any]:
    """Inventory and holders of ``host``, each with the provider's generation, which any write raises."""
    provider = await placement.find_provider(host)
    assert provider is not None
    return await placement.inventories(provider.uuid), await placement.provider_allocations(provider.uuid)


async def test_second_daemon_counts_nothing(
    node: RabbitNode, placement: Placement, placement_url: str, tmp_path: Path
) -> None:
    """It ends with status 75, and of what the first has written to Placement nothing was touched meanwhile."""
    host = f"host-{uuid4()}"
    settings = {"host": host, "broker": node.url, "placement": placement_url}
    async with _daemon(tmp_path / "1", reserved_cpus=0, **settings) as (first, guest):
        await first.until("reconciliation.difference")
        before = await _counted(placement, host)
        held = await placement.allocation(guest)
        assert held is not None
        assert merged(held.resources) == {"VCPU": 2, "MEMORY_MB": 64 + OVERHEAD}

        async with _daemon(tmp_path / "2", reserved_cpus=1, **settings) as (second, unseen):
            status, said = await second.ended()

        assert status == HOST_TAKEN, said
        assert f"another daemon serves host '{host}'" in said
        assert await _counted(placement, host) == before
        assert await placement.allocation(guest) == held
        assert await placement.allocation(unseen) is None


async def test_counts_without_a_broker(placement: Placement, placement_url: str, tmp_path: Path) -> None:
    """A daemon that starts while RabbitMQ is away counts its guests all the same."""
    broker = f"amqp://guest:guest@127.0.0.1:{free_port()}/"
    settings = {"host": f"host-{uuid4()}", "broker": broker, "placement": placement_url}
    async with _daemon(tmp_path / "1", reserved_cpus=0, **settings) as (daemon, guest):
        await daemon.until("reconciliation.difference")

        assert await placement.allocation(guest) is not None
