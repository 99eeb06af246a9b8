"""The kinds of failed launches of encrypted guests, and what the tables of them are made of."""

from enum import StrEnum
from typing import Final, NamedTuple

from sev_agent.hypervisor.errors import StartFailed


class Layer(StrEnum):
    """Who is at fault, as an operator names it."""

    REQUEST = "the request"
    SECURE_PROCESSOR = "the secure processor's firmware"
    DEVICE = "the device /dev/sev"
    KERNEL = "the kernel"
    LIMITS = "the limit of locked memory"
    LIBVIRT = "libvirt"
    QEMU = "QEMU"
    GUEST_FIRMWARE = "the guest's firmware (OVMF)"
    MEMORY = "the host's memory"


class LaunchPolicyRefused(StartFailed):
    """The secure processor or the kernel does not take the guest's policy."""

    code = "launch.policy_refused"


class LaunchIdentityRefused(StartFailed):
    """The secure processor does not take the guest's identity, its signature or its session."""

    code = "launch.identity_refused"


class PlatformNotReady(StartFailed):
    """The secure processor is in no state to launch guests."""

    code = "launch.platform_not_ready"


class PlatformBroken(StartFailed):
    """The secure processor reports a fault of the hardware or of its own data."""

    code = "launch.platform_broken"


class DeviceUnusable(StartFailed):
    """QEMU cannot open the secure processor's device."""

    code = "launch.device_unusable"


class LaunchUnsupported(StartFailed):
    """A layer below does not know the generation or the option that the guest asks for."""

    code = "launch.unsupported"


class FirmwareUnsuitable(StartFailed):
    """The UEFI firmware that was chosen cannot start such a guest."""

    code = "launch.firmware_unsuitable"


class MemoryNotLocked(StartFailed):
    """The guest's memory could not be locked."""

    code = "launch.memory_not_locked"


class Symptom(NamedTuple):
    layer: Layer
    error: type[StartFailed]
    cause: str
    remedy: str


CHECK: Final = "run 'sev-agent check' on this host"
SLOTS: Final = "delete or stop an encrypted guest of this host, lower encryption.limit, or use another host"
PROCESSOR: Final = "update the secure processor's firmware (BIOS, or amd/amd_sev_*.sbin), or use another host"
OVMF: Final = "see 'sev-agent firmware', and install OVMF that is built for this generation"
REPORT: Final = "report it with the domain's log, below /var/log/libvirt/qemu"
LOCKING: Final = "let libvirtd raise the limit of locked memory: CAP_SYS_RESOURCE, or LimitMEMLOCK=infinity in its unit"
