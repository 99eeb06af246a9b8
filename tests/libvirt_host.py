"""A connected hypervisor for tests, and domains for libvirt's test driver."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from uuid import UUID

from sev_agent.config import HypervisorSection
from sev_agent.hypervisor.connection import Hypervisor
from sev_agent.hypervisor.domains import Domains
from sev_agent.hypervisor.events import LifecycleEvent

PATIENCE = 60.0
"""Seconds for what takes milliseconds on an idle machine."""

SEV = "<launchSecurity type='sev'><policy>0x0033</policy></launchSecurity>"
SEV_ES = "<launchSecurity type='sev'><policy>0x0037</policy></launchSecurity>"
SEV_SNP = "<launchSecurity type='sev-snp'><policy>0x00030000</policy></launchSecurity>"


@dataclass(frozen=True)
class Host:
    """A hypervisor that runs, and all that it said: ``changes`` has of ``told`` what differs from the one before."""

    hypervisor: Hypervisor
    domains: Domains
    events: "asyncio.Queue[LifecycleEvent]"
    changes: "asyncio.Queue[bool]"
    told: list[bool]
    task: "asyncio.Task[None]"

    async def next_events(self, count: int) -> list[LifecycleEvent]:
        async with asyncio.timeout(PATIENCE):
            return [await self.events.get() for _ in range(count)]

    async def next_change(self) -> bool:
        async with asyncio.timeout(PATIENCE):
            return await self.changes.get()

    async def stop(self) -> None:
        self.task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.task


@contextlib.asynccontextmanager
async def running_host(**settings: object) -> AsyncIterator[Host]:
    """A hypervisor with ``settings`` instead of the defaults, on libvirt's in-process test driver unless they say."""
    events: asyncio.Queue[LifecycleEvent] = asyncio.Queue()
    changes: asyncio.Queue[bool] = asyncio.Queue()
    told: list[bool] = []

    def tell(up: bool) -> None:  # noqa: FBT001 - the callback's one argument
        # Every new reason why it cannot be reached is told too, which changes nothing.
        if up != (told[-1] if told else False):
            changes.put_nowait(up)
        told.append(up)

    section = HypervisorSection.model_validate({"uri": "test:///default"} | settings)
    hypervisor = Hypervisor(section, on_event=events.put_nowait, on_change=tell)
    task = asyncio.create_task(hypervisor.run(), name="hypervisor")
    host = Host(hypervisor, Domains(hypervisor), events, changes, told, task)
    try:
        yield host
    finally:
        await host.stop()


def domain_xml(uuid: UUID, name: str = "guest", *, security: str = "", vcpu: str = "2", extra: str = "") -> str:
    """A domain of 64 MiB that the test driver takes."""
    return (
        f"<domain type='test'><name>{name}</name><uuid>{uuid}</uuid>{extra}<memory unit='MiB'>64</memory>"
        f"<vcpu>{vcpu}</vcpu><os><type>hvm</type></os>{security}</domain>"
    )


def agent_metadata(uuid: UUID, generation: str = "amd-sev") -> str:
    """What this agent writes into its domains."""
    return (
        f"<metadata><sev:instance xmlns:sev='urn:sev-agent:instance:1' uuid='{uuid}' name='n' project_id='p'"
        f" user_id='u' flavor='f' image_id='{uuid}' generation='{generation}' creator='sev-agent'/></metadata>"
    )
