"""Whole daemons count for their host's name, but for one that is another daemon's."""

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, Final
from uuid import UUID, uuid4

from sev_agent.openstack.placement import Placement
from tests.integration.compute.conftest import OVERHEAD, merged
from tests.libvirt_host import SEV, domain_xml
from tests.rabbitmq import RabbitNode, free_port

_HOST_TAKEN: Final = 75
_PATIENCE: Final = 60.0

_CONFIG = """
[host]
name = "{host}"
state_dir = "{directory}/state"
[hypervisor]
uri = "test://{directory}/libvirt.xml"
[messaging]
url = "{broker}"
[auth]
type = "none"
[glance]
endpoint = "http://127.0.0.1:1"
[placement]
endpoint = "{placement}"
reserved_host_cpus = {reserved_cpus}
[http]
port = 0
[log]
format = "json"
"""
"""libvirt's test driver keeps what it has in the daemon's own process: each daemon has guests of its own."""


class Daemon:
    """``sev-agent run`` on a libvirt of its own, with ``guest`` in it."""

    def __init__(self, process: asyncio.subprocess.Process, guest: UUID) -> None:
        self.guest = guest
        self._process = process

    async def until(self, word: str) -> None:
        """Wait until it says ``word``; then take no more of what it says."""
        assert self._process.stdout is not None
        async with asyncio.timeout(_PATIENCE):
            while word.encode() not in (line := await self._process.stdout.readline()):
                assert line, f"the daemon ended before it said {word!r}"

    async def ended(self) -> tuple[int | None, str]:
        async with asyncio.timeout(_PATIENCE):
            output, _ = await self._process.communicate()
        return self._process.returncode, output.decode()


def _configured(directory: Path, guest: UUID, settings: Mapping[str, Any]) -> Path:
    directory.mkdir()
    (directory / "libvirt.xml").write_text(f"<node>{domain_xml(guest, security=SEV)}</node>")
    path = directory / "agent.toml"
    path.write_text(_CONFIG.format(directory=directory, **settings))
    return path


@contextlib.asynccontextmanager
async def _daemon(directory: Path, **settings: Any) -> AsyncIterator[Daemon]:
    guest = uuid4()
    config = _configured(directory, guest, settings)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "sev_agent", "run", "--config", str(config)),
        env={name: value for name, value in os.environ.items() if not name.startswith("SEV_AGENT_")},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        yield Daemon(process, guest)
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


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
    async with _daemon(tmp_path / "1", reserved_cpus=0, **settings) as first:
        await first.until("reconciliation.difference")
        before = await _counted(placement, host)
        held = await placement.allocation(first.guest)
        assert held is not None
        assert merged(held.resources) == {"VCPU": 2, "MEMORY_MB": 64 + OVERHEAD}

        async with _daemon(tmp_path / "2", reserved_cpus=1, **settings) as second:
            status, said = await second.ended()

        assert status == _HOST_TAKEN, said
        assert f"another daemon serves host '{host}'" in said
        assert await _counted(placement, host) == before
        assert await placement.allocation(first.guest) == held
        assert await placement.allocation(second.guest) is None


async def test_counts_without_a_broker(placement: Placement, placement_url: str, tmp_path: Path) -> None:
    """A daemon that starts while RabbitMQ is away counts its guests all the same."""
    broker = f"amqp://guest:guest@127.0.0.1:{free_port()}/"
    settings = {"host": f"host-{uuid4()}", "broker": broker, "placement": placement_url}
    async with _daemon(tmp_path / "1", reserved_cpus=0, **settings) as daemon:
        await daemon.until("reconciliation.difference")

        assert await placement.allocation(daemon.guest) is not None
