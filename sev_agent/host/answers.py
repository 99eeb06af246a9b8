"""What others than files say of a host: libvirt, Placement, RabbitMQ."""

from dataclasses import dataclass

from sev_agent.hypervisor.sev_capabilities import SevCapabilities


@dataclass(frozen=True, slots=True, kw_only=True)
class NotAsked:
    """A question that was not put; ``reason`` says why."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NoAnswer:
    """A question that got no answer, or an error."""

    source: str
    fault: str
    remedy: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LibvirtAnswer:
    """libvirt's domain capabilities of q35 under KVM, and its versions as ``major.minor.micro``."""

    source: str
    capabilities: SevCapabilities
    libvirt_version: str
    qemu_version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceAnswer:
    """A service that answered; ``found`` says with what."""

    source: str
    found: str


Libvirt = LibvirtAnswer | NoAnswer | NotAsked
Service = ServiceAnswer | NoAnswer | NotAsked
