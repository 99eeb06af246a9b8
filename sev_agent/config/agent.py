"""What the host daemon is told."""

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from sev_agent.config.every_daemon import DaemonConfig, ServiceSection
from sev_agent.config.policy import PolicySection
from sev_agent.config.section import AbsolutePath, MachineName, Seconds, Section, machine_name


class HostSection(Section):
    """Who this host is, and where its state lives."""

    name: MachineName = Field(default_factory=machine_name, validate_default=True)
    state_dir: AbsolutePath = Path("/var/lib/sev-agent")


class HypervisorSection(Section):
    """The libvirt daemon below. Times are seconds.

    ``threads`` is how many calls are made at once. It must stay below libvirtd's ``max_client_requests``, 5 by
    default: with that many in progress libvirtd reads nothing more, keepalive fails, and a healthy connection is lost.
    """

    uri: str = Field(default="qemu:///system", min_length=1)
    virt_type: Literal["kvm", "qemu"] = "kvm"
    emulator: AbsolutePath = Path("/usr/bin/qemu-system-x86_64")
    firmware_dirs: tuple[AbsolutePath, ...] = (Path("/etc/qemu/firmware"), Path("/usr/share/qemu/firmware"))
    keepalive_interval: int = Field(default=5, ge=1, le=60)
    keepalive_count: int = Field(default=3, ge=1, le=20)
    threads: int = Field(default=4, ge=2, le=64)
    connect_timeout: Seconds = 10
    call_timeout: Seconds = 60
    reconnect_max: Seconds = 5


class EncryptionSection(PolicySection):
    """The SEV platform. ``platform_root`` is the root below which ``sys``, ``proc`` and ``dev`` are read.

    ``limit`` is the most SEV guests, ``es_limit`` the most guests of SEV-ES or SEV-SNP; ``watch_interval`` is seconds.
    """

    platform_root: AbsolutePath = Path("/")
    limit: int | None = Field(default=None, ge=1, le=100_000)
    es_limit: int | None = Field(default=None, ge=1, le=100_000)
    memory_limit: Literal["none", "footprint"] = "none"
    watch_interval: Seconds = 10


class NotificationsSection(Section):
    """How many notifications, and MiB of them, are kept while the broker is away."""

    max_count: int = Field(default=10_000, ge=100, le=1_000_000)
    max_mb: int = Field(default=16, ge=1, le=256)


class PlacementSection(ServiceSection):
    """Placement, whose tree the host's is there, and how guests are counted in it.

    ``reserved_host_...`` is what this host does not offer: it is the host's own. ``guest_overhead_mb`` is what a guest
    takes beside its RAM, MiB. ``claim_grace`` is how long a scheduler's claim may wait for its request, seconds.
    """

    mode: Literal["standalone", "beside-nova"] = "standalone"
    nova_node: str | None = Field(default=None, min_length=1, max_length=200)
    guest_overhead_mb: int = Field(default=128, ge=0, le=65_536)
    claim_grace: Seconds = 300
    reserved_host_memory_mb: int = Field(default=512, ge=0)
    reserved_host_cpus: int = Field(default=0, ge=0)
    reserved_host_disk_gb: int = Field(default=0, ge=0)
    cpu_allocation_ratio: float = Field(default=4.0, gt=0, le=64)
    stopped_guests: Literal["release", "hold"] = "release"


class ImagesSection(Section):
    """The cache of images. Sizes in GiB and MiB, times in seconds."""

    cache_max_gb: int = Field(default=100, ge=1)
    download_timeout: Seconds = 3600
    idle_timeout: Seconds = 60
    inspect_timeout: Seconds = 30
    inspect_memory_mb: int = Field(default=1024, ge=128)


class BuildsSection(Section):
    """How much is done at once, and how long a stop waits for it (seconds)."""

    max_concurrent: int = Field(default=10, ge=1, le=256)
    max_power_changes: int = Field(default=50, ge=1, le=1000)
    stop_timeout: Seconds = 30
    guest_shutdown_timeout: Seconds = 60


class ReconcilerSection(Section):
    """The minutely comparison of what runs with what Placement counts (seconds)."""

    interval: Seconds = 60
    jitter: float = Field(default=5, ge=0, le=600)


class HealthSection(Section):
    """How often the services that are needed now and then are looked at (seconds)."""

    interval: Seconds = 60


class AgentConfig(DaemonConfig):
    """Everything that ``sev-agent run`` is told. Read with ``load``."""

    reference: ClassVar[str] = "conf/sev-agent.toml"

    host: HostSection = Field(default_factory=HostSection)
    hypervisor: HypervisorSection = Field(default_factory=HypervisorSection)
    encryption: EncryptionSection = Field(default_factory=EncryptionSection)
    notifications: NotificationsSection = Field(default_factory=NotificationsSection)
    glance: ServiceSection = Field(default_factory=ServiceSection)
    placement: PlacementSection = Field(default_factory=PlacementSection)
    images: ImagesSection = Field(default_factory=ImagesSection)
    builds: BuildsSection = Field(default_factory=BuildsSection)
    reconciler: ReconcilerSection = Field(default_factory=ReconcilerSection)
    health: HealthSection = Field(default_factory=HealthSection)
