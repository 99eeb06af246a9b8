"""What a domain is to be, before it is XML."""

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from uuid import UUID

from sev_agent.schema import NetworkKind
from sev_agent.sev.generation import Generation
from sev_agent.sev.image_properties import CdromBus, DiskBus, ScsiModel
from sev_agent.sev.launch_options import LaunchOptions
from sev_agent.sev.policy import SevPolicy, SnpPolicy


class VirtType(StrEnum):
    """What runs the guest's instructions: the processor, or QEMU's emulator (slow; no encryption)."""

    KVM = "kvm"
    QEMU = "qemu"


class DiskFormat(StrEnum):
    RAW = "raw"
    QCOW2 = "qcow2"


class DiskCache(StrEnum):
    """How the host caches a disk.

    ``writeback`` works on every file system, lets the guests of one image share its pages in the host's cache, and is
    as safe as the guest's own flushes make it. ``none`` bypasses the host's cache with ``O_DIRECT``, which some file
    systems (tmpfs before Linux 6.6, some network ones) refuse at start.
    """

    WRITEBACK = "writeback"
    NONE = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitFlash:
    """UEFI in two flash chips: code that all guests share, and variables (NVRAM) that are this guest's own.

    libvirt makes ``nvram`` from ``nvram_template`` at start if it is not there.
    """

    code: Path
    code_format: DiskFormat = DiskFormat.RAW
    nvram: Path
    nvram_template: Path
    nvram_format: DiskFormat = DiskFormat.RAW


@dataclass(frozen=True, slots=True, kw_only=True)
class StatelessFlash:
    """UEFI in one flash chip that nobody writes: it forgets its variables with every start."""

    code: Path
    code_format: DiskFormat = DiskFormat.RAW


@dataclass(frozen=True, slots=True, kw_only=True)
class Rom:
    """UEFI mapped as memory below 4 GiB, as SEV-SNP has to have it: encrypted and measured like the rest of it."""

    code: Path


Firmware = SplitFlash | StatelessFlash | Rom


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelBoot:
    """A kernel that the firmware starts in place of a boot loader from the disk."""

    kernel: Path
    ramdisk: Path | None = None
    command_line: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """The root disk."""

    path: Path
    format: DiskFormat
    bus: DiskBus
    cache: DiskCache = DiskCache.WRITEBACK


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigDrive:
    """The ISO image that tells the guest who it is."""

    path: Path
    bus: CdromBus


@dataclass(frozen=True, slots=True, kw_only=True)
class Nic:
    """A virtio NIC. ``source`` is the bridge's or the network's name; ``kind`` is never ``none``."""

    kind: NetworkKind
    mac: str
    source: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SevLaunch:
    """SEV, or SEV-ES where the policy says so. ``options`` has nothing that is SEV-SNP's alone."""

    policy: SevPolicy
    options: LaunchOptions = field(default_factory=LaunchOptions)

    @property
    def generation(self) -> Generation:
        return self.policy.generation


@dataclass(frozen=True, slots=True, kw_only=True)
class SnpLaunch:
    """SEV-SNP."""

    policy: SnpPolicy
    options: LaunchOptions = field(default_factory=LaunchOptions)

    @property
    def generation(self) -> Generation:
        return Generation.SEV_SNP


LaunchSecurity = SevLaunch | SnpLaunch
"""How the guest is launched encrypted: one member for each element that libvirt has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestMetadata:
    """What the domain remembers of its instance, readable from its XML alone.

    ``firmware_sha256`` is what the firmware's code was when the domain was defined; empty in domains of before it was.
    """

    uuid: UUID
    name: str
    project_id: str
    user_id: str
    flavor: str
    image_id: UUID
    generation: Generation
    creator: str
    firmware_sha256: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainSpec:
    """A whole encrypted guest. Memory in MiB; paths are absolute, on the host that will run it.

    ``memory_limit_mb`` is all that QEMU may take and lock, the guest's RAM included; ``None`` sets no limit.
    """

    uuid: UUID
    name: str
    title: str
    virt_type: VirtType
    emulator: Path
    machine: str
    vcpus: int
    memory_mb: int
    firmware: Firmware
    disk: Disk
    config_drive: ConfigDrive
    scsi_model: ScsiModel
    nics: tuple[Nic, ...]
    console_log: Path
    launch_security: LaunchSecurity
    metadata: GuestMetadata
    kernel: KernelBoot | None = None
    memory_limit_mb: int | None = None
