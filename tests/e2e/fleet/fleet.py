"""A lab of several hosts, as its operator sees it."""

import asyncio
import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sev_agent.lab.cloud import Lab
from sev_agent.lab.host import Host
from sev_agent.lab.platform.compute_host import ComputeHost
from sev_agent.lab.supervisor import State
from sev_agent.messaging import topology
from sev_agent.messaging.client import RpcClient
from sev_agent.openstack.placement import Placement
from sev_agent.sev.generation import RESOURCE_CLASS, Generation
from tests.e2e.cloud import run
from tests.e2e.fleet.tenant import SETTLED_SECONDS, Tenant
from tests.e2e.waiting import eventually

SLOTS = 5
PLATFORMS = ("sev", "sev", "sev", "none")
WITH_SLOTS = tuple(f"compute-{number}" for number, platform in enumerate(PLATFORMS, start=1) if platform == "sev")
TOTAL = SLOTS * len(WITH_SLOTS)


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """``red`` and ``blue`` are tenants of two projects, ``reader`` one of red's who may only look.

    ``image`` holds no system: enough to start a guest, not to boot it. ``flavor`` is for small encrypted guests.
    """

    lab: Lab
    placement: Placement
    rpc: RpcClient
    operator: Tenant
    red: Tenant
    blue: Tenant
    reader: Tenant
    image: UUID
    flavor: str

    async def create(self, tenant: Tenant, name: str, **more: Any) -> UUID:
        return await tenant.create(name, image=self.image, flavor=self.flavor, **more)

    def host(self, name: str) -> ComputeHost:
        host: Host = self.lab.host(name)
        assert isinstance(host, ComputeHost), "these tests need a simulated platform"
        return host

    async def used(self) -> int:
        """The encrypted guests of the whole fleet, as Placement itself adds them up."""
        return sum([await self._used(name) for name in WITH_SLOTS])

    async def _used(self, host: str) -> int:
        provider = await self.placement.find_provider(Generation.SEV.provider_name(host))
        assert provider is not None
        return (await self.placement.usages(provider.uuid)).get(RESOURCE_CLASS, 0)

    async def running(self) -> Mapping[str, set[UUID]]:
        """What libvirt runs on each host."""
        return {host.name: await self._running(host) for host in self.lab.hosts}

    @staticmethod
    async def _running(host: Host) -> set[UUID]:
        listed = await run("virsh", "--quiet", "--connect", host.uri, "list", "--state-running", "--uuid")
        assert listed.status == 0, listed.errors
        return {UUID(line) for line in listed.output.split()}

    async def kill(self, *services: str) -> None:
        """End processes of the lab as a crash does, and wait until they are gone."""
        for status in await self.lab.status():
            if status.name in services:
                assert status.pid is not None, f"{status.name} does not run"
                os.kill(status.pid, signal.SIGKILL)

        async def gone() -> bool:
            return all(status.state is State.STOPPED for status in await self.lab.status() if status.name in services)

        await eventually(gone, within=SETTLED_SECONDS, what=f"{', '.join(services)} are gone")

    async def heal(self) -> None:
        """Start again what is not there, and wait until every host takes work."""
        if any(status.state is not State.READY for status in await self.lab.status()):
            await self.lab.up()
        for host in self.lab.hosts:
            await self.takes_work(host.name, is_so=True)

    async def takes_work(self, host: str, *, is_so: bool) -> None:
        """Wait until ``host`` has a consumer on its work queue, or none."""

        async def look() -> bool:
            return bool(await self.rpc.consumer_count(topology.work_queue_name(host))) == is_so

        await eventually(look, within=SETTLED_SECONDS, what=f"{host} takes work: {is_so}")

    async def empty(self) -> None:
        """Delete every server of everyone, and wait until nothing of them is left anywhere."""
        for failure in (self.host(name).failures for name in WITH_SLOTS):
            await asyncio.to_thread(failure.disarm)
        for server in await self.operator.servers(all_tenants="1"):
            answer = await self.operator.ask("DELETE", f"/servers/{server['id']}")
            assert answer.status in {204, 404}, answer.body

        async def gone() -> bool:
            return not await self.operator.servers(all_tenants="1")

        await eventually(gone, within=SETTLED_SECONDS, what="every server is deleted", every=0.3)

    async def fleet_is_free(self) -> bool:
        return await self.used() == 0 and not any((await self.running()).values())
