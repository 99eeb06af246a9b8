"""The API and the scheduler under measurement: processes of their own, configured as the lab configures them."""

import asyncio
import contextlib
import os
import tempfile
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import aiohttp

from sev_agent.config import ServiceSection
from sev_agent.lab.accounts import admin
from sev_agent.lab.cloud import Lab
from sev_agent.lab.control import ControlPlane, port_names
from sev_agent.lab.service import Service
from sev_agent.lab.state import free_ports
from sev_agent.openstack.compute_api import ComputeApi
from sev_agent.openstack.identity import KeystoneIdentity
from sev_agent.sev import tags
from tests.bench.guests import MEMORY_MB
from tests.e2e.fleet.tenant import Tenant

_READY_SECONDS = 60.0
_POLL_SECONDS = 0.1

_API: Final = {
    "SEV_AGENT_QUOTA__SERVERS": "-1",
    "SEV_AGENT_QUOTA__VCPUS": "-1",
    "SEV_AGENT_QUOTA__RAM_MB": "-1",
    # The lab looks more often than a cloud would; what is placed and never built is no business of this look.
    "SEV_AGENT_UPKEEP__INTERVAL": "3600",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """One API and one scheduler, by the numbers of their processes, and somebody who may create servers."""

    api: int
    scheduler: int
    operator: Tenant
    flavor: str


@contextlib.asynccontextmanager
async def running(lab: Lab) -> AsyncIterator[Control]:
    """Both, on a database that goes with them, and a public flavor for the small encrypted guests."""
    names = port_names(1, 1)
    async with contextlib.AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=lab.directory, prefix="control-")))
        plane = ControlPlane(
            directory=directory,
            ports=dict(zip(names, free_ports(len(names)), strict=True)),
            rabbit_url=lab.rabbit_url,
            cloud=lab.cloud,
            apis=1,
            schedulers=1,
        )
        await plane.prepare()
        pids = {
            service.name: await stack.enter_async_context(_process(service, directory)) for service in plane.services()
        }
        session = await stack.enter_async_context(aiohttp.ClientSession())
        identity = KeystoneIdentity(session, admin(lab.cloud))
        (url,) = plane.compute_urls
        flavor = await ComputeApi(session, identity, ServiceSection(endpoint=url)).create_flavor(
            "bench", vcpus=1, ram=MEMORY_MB, disk=1, is_public=True, extra_specs=tags.flavor_tags()
        )
        yield Control(
            api=pids["api"],
            scheduler=pids["scheduler"],
            operator=Tenant(session, identity, (url,)),
            flavor=flavor.id,
        )


@contextlib.asynccontextmanager
async def _process(service: Service, directory: Path) -> AsyncIterator[int]:
    """The number of the process, once it is ready."""
    with (directory / f"{service.name}.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *service.command, stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log, env=_environment(service)
        )
    try:
        async with asyncio.timeout(_READY_SECONDS):
            while not await _is_ready(service):
                assert process.returncode is None, (directory / f"{service.name}.log").read_text()[-3000:]
                await asyncio.sleep(_POLL_SECONDS)
        yield process.pid
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.wait()


async def _is_ready(service: Service) -> bool:
    try:
        return await service.ready()
    except OSError:
        return False


def _environment(service: Service) -> Mapping[str, str]:
    of_the_api = _API if service.name == "api" else {}
    # The allocator as in the units.
    return {"PATH": os.environ["PATH"], "MALLOC_ARENA_MAX": "2", **service.environment, **of_the_api}
