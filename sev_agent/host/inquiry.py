"""Questions to libvirt, Placement and RabbitMQ, each put once and limited in time."""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Coroutine
from typing import Any, Final

import aiohttp

from sev_agent.config import AgentConfig, HypervisorSection
from sev_agent.errors import SevAgentError
from sev_agent.host.answers import Libvirt, LibvirtAnswer, NoAnswer, NotAsked, Service, ServiceAnswer
from sev_agent.host.evidence import Evidence
from sev_agent.hypervisor.capabilities import DomainCapabilities, read_domain_capabilities
from sev_agent.hypervisor.connection import Hypervisor
from sev_agent.hypervisor.host_files import HostFiles
from sev_agent.hypervisor.sev_capabilities import parse
from sev_agent.messaging.broker import Broker
from sev_agent.openstack.identity import KeystoneIdentity, NoIdentity
from sev_agent.openstack.placement import Placement

CAPABILITIES: Final = "captured/domcapabilities.xml"
"""In a captured host: what ``virsh domcapabilities --virttype kvm --machine q35`` printed."""

NO_CAPABILITIES: Final = "error: "
"""How that file begins where libvirt had no answer, as ``virsh`` says it."""

VERSIONS: Final = "captured/virsh-version.txt"
"""In a captured host: what ``virsh version`` printed."""

_NO_CONFIGURATION = NotAsked(reason="no --config: the daemon's configuration says where it is and who asks")
_SEE_LIBVIRTD = "see that libvirtd or virtqemud runs; its log says more"
_VERSION_LINES = {
    "libvirt": re.compile(r"^Using library: libvirt (\S+)$", re.MULTILINE),
    "qemu": re.compile(r"^Running hypervisor: QEMU (\S+)$", re.MULTILINE),
}


async def gather(files: HostFiles, config: AgentConfig | None) -> Evidence:
    """Ask all of them at once.

    Without ``config``, libvirt is asked on the machine itself only; below another root, what was captured stands for
    it. Nothing is raised for what does not answer.
    """
    if config is None:
        libvirt = await ask_libvirt(HypervisorSection()) if files.is_live else _captured_libvirt(files)
        return Evidence(files=files, libvirt=libvirt, placement=_NO_CONFIGURATION, rabbitmq=_NO_CONFIGURATION)
    libvirt, placement, rabbitmq = await asyncio.gather(
        ask_libvirt(config.hypervisor), _ask_placement(config), _ask_rabbitmq(config)
    )
    return Evidence(
        files=files,
        libvirt=libvirt,
        placement=placement,
        rabbitmq=rabbitmq,
        firmware_dirs=config.hypervisor.firmware_dirs,
    )


async def ask_libvirt(settings: HypervisorSection) -> Libvirt:
    try:
        return _read(await domain_capabilities(settings), settings.uri)
    except SevAgentError as error:
        return NoAnswer(source=settings.uri, fault=error.message, remedy=error.remedy or _SEE_LIBVIRTD)


async def domain_capabilities(settings: HypervisorSection) -> DomainCapabilities:
    """What libvirt says, unread. Raises ``HypervisorError``, which the first failure to connect is too."""
    settled = asyncio.Event()
    hypervisor = Hypervisor(settings, on_event=lambda _event: None, on_change=lambda _up: settled.set())
    async with _running("hypervisor", hypervisor.run()):
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(settled.wait(), settings.connect_timeout)
        return await read_domain_capabilities(hypervisor, settings)


def _captured_libvirt(files: HostFiles) -> Libvirt:
    try:
        xml = files.text_or_none(CAPABILITIES)
        versions = files.text_or_none(VERSIONS) or ""
        if xml is None:
            return NotAsked(reason=f"{files.where(CAPABILITIES)} was not captured")
        if xml.startswith(NO_CAPABILITIES):
            fault = xml.removeprefix(NO_CAPABILITIES).strip()
            return NoAnswer(source=files.where(CAPABILITIES), fault=fault, remedy=_SEE_LIBVIRTD)
        found = {name: line.search(versions) for name, line in _VERSION_LINES.items()}
        libvirt, qemu = found["libvirt"], found["qemu"]
        told = DomainCapabilities(
            xml=xml,
            libvirt_version=libvirt[1] if libvirt else "unknown",
            emulator_version=qemu[1] if qemu else "unknown",
        )
        return _read(told, files.where(CAPABILITIES))
    except (OSError, SevAgentError) as error:
        return NoAnswer(source=files.where(CAPABILITIES), fault=str(error), remedy="capture it again")


def _read(told: DomainCapabilities, source: str) -> LibvirtAnswer:
    return LibvirtAnswer(
        source=source,
        capabilities=parse(told.xml),
        libvirt_version=told.libvirt_version,
        qemu_version=told.emulator_version,
    )


async def _ask_placement(config: AgentConfig) -> Service:
    source = config.placement.endpoint or "the endpoint in Keystone's catalog"
    try:
        async with aiohttp.ClientSession() as session:
            identity = NoIdentity() if config.auth.type == "none" else KeystoneIdentity(session, config.auth)
            provider = await Placement(session, identity, config.placement).find_provider(config.host.name)
    except SevAgentError as error:
        return NoAnswer(
            source=source, fault=error.message, remedy=error.remedy or "check placement.endpoint and auth.auth_url"
        )
    known = f"knows {config.host.name}" if provider else f"does not know {config.host.name} yet"
    return ServiceAnswer(source=source, found=known)


async def _ask_rabbitmq(config: AgentConfig) -> Service:
    settings = config.messaging
    settled = asyncio.Event()
    broker = Broker(
        settings.url.get_secret_value(),
        connection_name=f"sev-agent check of {config.host.name}",
        connect_timeout=settings.connect_timeout,
        reconnect_max=settings.reconnect_max,
        publish_timeout=settings.publish_timeout,
        on_change=lambda _up: settled.set(),
    )
    async with _running("broker", broker.run()):
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(settled.wait(), settings.connect_timeout)
        fault = None if broker.is_up else broker.unavailable("no connection")
    if fault is None:
        return ServiceAnswer(source="messaging.url", found="connected, and may declare exchange sev")
    return NoAnswer(source="messaging.url", fault=fault.message, remedy=fault.remedy or "check messaging.url")


@contextlib.asynccontextmanager
async def _running(name: str, work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    task = asyncio.create_task(work, name=name)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})
