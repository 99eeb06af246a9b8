"""What shows that a guest of the lab runs, runs encrypted, and is counted: read from libvirt, Placement and HTTP."""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import aiohttp
from lxml import etree

from sev_agent.config import AgentConfig, load
from sev_agent.domain.identity import domain_name
from sev_agent.domain.xml import parse_domain
from sev_agent.errors import SevAgentError
from sev_agent.lab.cloud import Lab
from sev_agent.lab.host import Host
from sev_agent.lab.platform.emulator.kind import Kind
from sev_agent.lab.supervisor import last_lines
from sev_agent.openstack.identity import KeystoneIdentity
from sev_agent.openstack.placement import Placement
from sev_agent.sev.generation import RESOURCE_CLASS, Generation
from sev_agent.subprocesses import run_bounded

_VIRSH_SECONDS: Final = 20.0
_HTTP_SECONDS: Final = 5.0
_SCHEDULER_LINES: Final = 500
_PLACED: Final = "scheduler.placed"
METRICS: Final = (
    "sev_agent_slots_total{",
    "sev_agent_slots_used{",
    "sev_agent_domains{",
    "sev_agent_builds_total{",
    "sev_agent_dependency_up{",
    "sev_agent_last_reconciliation_timestamp_seconds ",
)
"""The beginnings of the lines that matter."""


class EvidenceMissing(SevAgentError):
    """The lab does not show what it should."""

    code = "lab.evidence_missing"


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainEvidence:
    """What libvirt says of a running domain. ``devices`` says for each virtio device whether its IOMMU is on."""

    launch_security: str
    policy: str
    machine: str
    locked: bool
    firmware: str
    devices: Mapping[str, bool]
    launch_info: Mapping[str, str]


async def domain_evidence(host: Host, uuid: UUID) -> DomainEvidence:
    """Ask the libvirtd of ``host`` through its own client, as an operator would. Raises ``ProgramFailed``."""
    domain = parse_domain(await _virsh(host, "dumpxml", domain_name(uuid)))
    information = await _virsh(host, "domlaunchsecinfo", domain_name(uuid))
    security, kind = domain.find("launchSecurity"), domain.find("os/type")
    return DomainEvidence(
        launch_security="none" if security is None else security.get("type", ""),
        policy="" if security is None else security.findtext("policy") or "",
        machine="" if kind is None else kind.get("machine", ""),
        locked=domain.find("memoryBacking/locked") is not None,
        firmware=domain.findtext("os/loader") or "",
        devices=dict(_virtio_devices(domain)),
        launch_info=_pairs(information),
    )


async def console(host: Host, lab: Lab, uuid: UUID) -> str:
    """What the guest has printed so far."""
    path = _configuration(lab, host).host.state_dir / "instances" / str(uuid) / "console.log"
    return await asyncio.to_thread(lambda: path.read_text(errors="replace") if path.exists() else "")


async def slots_used(lab: Lab, host: Host) -> tuple[int, int]:
    """``mem_encryption_used_num`` and the limit: usage and total of the slots, as Placement itself adds them up."""
    async with aiohttp.ClientSession() as session:
        config = _configuration(lab, host)
        placement = Placement(session, KeystoneIdentity(session, config.auth), config.placement)
        name = Generation.SEV.provider_name(host.name)
        provider = await placement.find_provider(name)
        if provider is None:
            raise EvidenceMissing(
                f"Placement has no provider {name}", remedy=f"see 'sev-agent lab logs agent-{host.name}'"
            )
        usages = await placement.usages(provider.uuid)
        _, inventories = await placement.inventories(provider.uuid)
        return usages.get(RESOURCE_CLASS, 0), inventories[RESOURCE_CLASS].total


def hosts_with_slots(lab: Lab) -> tuple[Host, ...]:
    """The hosts that run SEV guests."""
    return tuple(host for host in lab.hosts if host.platform != Kind.NONE)


def scheduling(lab: Lab, uuid: UUID) -> dict[str, int]:
    """What the scheduler counted when it placed the instance. Blocks on its log."""
    logs = (lab.log_path(name) for name in lab.log_names() if name.startswith("scheduler"))
    for line in (line for log in logs for line in last_lines(log, _SCHEDULER_LINES)):
        if _PLACED in line and str(uuid) in line:
            said: dict[str, Any] = json.loads(line)
            return {name: int(value) for name, value in said.items() if isinstance(value, int)}
    raise EvidenceMissing(
        f"no scheduler of the lab says where it placed {uuid}", remedy="see 'sev-agent lab logs scheduler'"
    )


async def metrics(lab: Lab, host: Host) -> list[str]:
    """The lines of the daemon's metrics that tell of slots, domains and builds."""
    timeout = aiohttp.ClientTimeout(total=_HTTP_SECONDS)
    async with (
        aiohttp.ClientSession(timeout=timeout) as session,
        session.get(f"{lab.http_url(host)}/metrics") as answer,
    ):
        text = await answer.text()
    return [line for line in text.splitlines() if line.startswith(METRICS)]


async def _virsh(host: Host, command: str, domain: str) -> str:
    completed = await run_bounded(
        ["virsh", "--connect", host.uri, command, domain], timeout=_VIRSH_SECONDS, max_output=1024 * 1024
    )
    return completed.stdout.decode()


def _configuration(lab: Lab, host: Host) -> AgentConfig:
    return load(Path(lab.agent_config(host)), {})


def _virtio_devices(domain: etree._Element) -> list[tuple[str, bool]]:
    """Each device of ``domain`` that virtio moves data for, and whether ``iommu='on'`` stands at it."""
    found = []
    for device in domain.iterfind("devices/*"):
        target, model = device.find("target"), device.find("model")
        is_virtio = (
            "virtio" in (device.get("model") or "")
            or (target is not None and target.get("bus") == "virtio")
            or (model is not None and "virtio" in (model.get("type") or ""))
            or (device.tag == "controller" and device.get("type") == "virtio-serial")
        )
        if is_virtio:
            driver = device.find("driver")
            name = f"{device.tag} {device.get('type') or device.get('model') or ''}".strip()
            found.append((name, driver is not None and driver.get("iommu") == "on"))
    return found


def _pairs(text: str) -> dict[str, str]:
    pairs = (line.partition(":") for line in text.splitlines() if ":" in line)
    return {name.strip(): value.strip() for name, _, value in pairs}


def check(evidence: DomainEvidence) -> None:
    """Raises ``EvidenceMissing`` where the domain is not what an encrypted guest must be. Values are libvirt's."""
    faults: list[Any] = [f"{name} without iommu='on'" for name, iommu in evidence.devices.items() if not iommu]
    if evidence.launch_security != "sev":
        faults.append(f"launch security is '{evidence.launch_security}'")
    if not evidence.locked:
        faults.append("its memory is not locked")
    if not evidence.devices:
        faults.append("it has no virtio device")
    if faults:
        raise EvidenceMissing(f"the domain is not as it must be: {'; '.join(faults)}")
