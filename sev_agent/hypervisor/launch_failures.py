"""Why an encrypted guest does not start: the words of firmware, KVM, QEMU and libvirt, put down to one layer each.

Sources: the texts of QEMU 9.1 to 10.0 (``target/i386/sev.c``, ``hw/i386/pc_sysfw*.c``, ``accel/kvm``) and libvirt
(``qemu_process.c``, ``qemu_validate.c``); the firmware's status codes of AMD 55766 (SEV API) and AMD 56860 (SEV-SNP
Firmware ABI), both chapter "Status Codes".
"""

import re
from enum import StrEnum
from typing import Final, NamedTuple

import libvirt  # noqa: TID251 - this package is the one that may

from sev_agent.hypervisor.errors import NoMemory, NoSlot, StartFailed, text_of


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


class _Symptom(NamedTuple):
    layer: Layer
    error: type[StartFailed]
    cause: str
    remedy: str


_CHECK: Final = "run 'sev-agent check' on this host"
_SLOTS: Final = "delete or stop an encrypted guest of this host, lower encryption.limit, or use another host"
_PROCESSOR: Final = "update the secure processor's firmware (BIOS, or amd/amd_sev_*.sbin), or use another host"
_OVMF: Final = "see 'sev-agent firmware', and install OVMF that is built for this generation"
_REPORT: Final = "report it with the domain's log, below /var/log/libvirt/qemu"
_LOCKING: Final = "let libvirtd raise the limit of locked memory: CAP_SYS_RESOURCE, or LimitMEMLOCK=infinity in its unit"

_PROCESSOR_SAYS: Final = Layer.SECURE_PROCESSOR
_STATUS: Final = {
    1: _Symptom(_PROCESSOR_SAYS, PlatformNotReady, "the platform is not initialized", f"{_CHECK}, then reload kvm_amd"),
    2: _Symptom(_PROCESSOR_SAYS, PlatformNotReady, "the guest is in the wrong state of its launch", _REPORT),
    3: _Symptom(
        _PROCESSOR_SAYS, PlatformNotReady, "the platform is configured otherwise than it needs", f"{_CHECK} (BIOS)"
    ),
    4: _Symptom(_PROCESSOR_SAYS, PlatformBroken, "a buffer was too small", _REPORT),
    5: _Symptom(
        _PROCESSOR_SAYS, PlatformNotReady, "the platform is owned by somebody else", "reset its ownership: sevctl reset"
    ),
    6: _Symptom(
        _PROCESSOR_SAYS, LaunchIdentityRefused, "a certificate is invalid", "make the guest's session for this host"
    ),
    7: _Symptom(
        _PROCESSOR_SAYS,
        LaunchPolicyRefused,
        "the guest's policy is not allowed here",
        "compare hw:mem_encryption_policy with this host: its firmware version, SMT, sockets; or use another host",
    ),
    8: _Symptom(_PROCESSOR_SAYS, PlatformNotReady, "the guest is not active", _REPORT),
    9: _Symptom(_PROCESSOR_SAYS, PlatformBroken, "an address of guest memory is invalid", _REPORT),
    10: _Symptom(
        _PROCESSOR_SAYS,
        LaunchIdentityRefused,
        "a signature is wrong",
        "sign hw_snp_id_block anew, and give its hw_snp_id_auth",
    ),
    11: _Symptom(
        _PROCESSOR_SAYS,
        LaunchIdentityRefused,
        "the measurement is not the expected one",
        "compute the measurement of hw_snp_id_block for this host's firmware, see 'sev-agent firmware'",
    ),
    12: _Symptom(_PROCESSOR_SAYS, NoSlot, "the guest's slot (ASID) is owned by another guest", _SLOTS),
    13: _Symptom(
        _PROCESSOR_SAYS,
        PlatformNotReady,
        "the guest's slot (ASID) is out of range",
        f"{_CHECK} (BIOS: lowest ASID of SEV)",
    ),
    14: _Symptom(_PROCESSOR_SAYS, PlatformNotReady, "the caches must be written back first (WBINVD)", "try again"),
    15: _Symptom(_PROCESSOR_SAYS, PlatformNotReady, "the data fabric must be flushed first (DF_FLUSH)", "try again"),
    16: _Symptom(_PROCESSOR_SAYS, PlatformNotReady, "the guest's handle is invalid", _REPORT),
    17: _Symptom(_PROCESSOR_SAYS, LaunchUnsupported, "it does not know the command", _PROCESSOR),
    18: _Symptom(_PROCESSOR_SAYS, PlatformNotReady, "the guest is active already", _REPORT),
    19: _Symptom(
        _PROCESSOR_SAYS, PlatformBroken, "a hardware error of the platform", "power the host off and on; else replace it"
    ),
    20: _Symptom(
        _PROCESSOR_SAYS,
        PlatformBroken,
        "the hardware is not safe any more",
        "take the host out of service, power it off and on",
    ),
    21: _Symptom(_PROCESSOR_SAYS, LaunchUnsupported, "it does not support the feature", _PROCESSOR),
    22: _Symptom(_PROCESSOR_SAYS, LaunchUnsupported, "a parameter is invalid", _REPORT),
    23: _Symptom(_PROCESSOR_SAYS, NoSlot, "it has no room for one more guest", _SLOTS),
    24: _Symptom(
        _PROCESSOR_SAYS,
        PlatformBroken,
        "its own data fails the check of integrity",
        "clear the platform's data (sevctl reset; BIOS: erase SEV data), then power the host off and on",
    ),
    32: _Symptom(
        _PROCESSOR_SAYS, PlatformNotReady, "the reverse map table is not initialized", f"{_CHECK} (BIOS: SEV-SNP)"
    ),
    33: _Symptom(_PROCESSOR_SAYS, PlatformNotReady, "a security version is too old", _PROCESSOR),
    34: _Symptom(_PROCESSOR_SAYS, LaunchPolicyRefused, "a version is invalid", "compare abi= of the policy, or update"),
    35: _Symptom(
        _PROCESSOR_SAYS, PlatformNotReady, "it must be shut down first", "stop all encrypted guests, reload kvm_amd"
    ),
    38: _Symptom(
        _PROCESSOR_SAYS, PlatformNotReady, "the reverse map table could not be made", f"{_CHECK} (BIOS: SEV-SNP)"
    ),
}
"""The status codes that a launch may end with, and what each means for the operator."""

_TEXTS: Final = tuple(
    (re.compile(pattern, re.IGNORECASE), symptom)
    for pattern, symptom in (
        (
            r"Failed to open /dev/sev 'No such file",
            _Symptom(
                Layer.DEVICE, DeviceUnusable, "it is not there", f"{_CHECK}: the kernel's module ccp makes it"
            ),
        ),
        (
            r"Failed to open /dev/sev",
            _Symptom(
                Layer.DEVICE,
                DeviceUnusable,
                "QEMU may not open it",
                "let QEMU's user read and write it (udev: group kvm), and list it in cgroup_device_acl of qemu.conf",
            ),
        ),
        # KVM_SEV_INIT fails with EBUSY when the ASIDs, or the misc cgroup's share of them, are used up: Linux,
        # arch/x86/kvm/svm/sev.c, sev_asid_new.
        (r"failed to initialize ret=-16\b", _Symptom(Layer.KERNEL, NoSlot, "every slot (ASID) is taken", _SLOTS)),
        (
            r"cannot limit locked memory",
            _Symptom(Layer.LIMITS, MemoryNotLocked, "libvirt may not raise it for the guest", _LOCKING),
        ),
        (
            r"failed to register region",
            _Symptom(Layer.LIMITS, MemoryNotLocked, "it is too low for the guest's memory", _LOCKING),
        ),
        (
            r"failed to lock memory|mlockall",
            _Symptom(Layer.LIMITS, MemoryNotLocked, "QEMU could not lock the guest's memory", _LOCKING),
        ),
        (
            r"guest policy requires (SEV\S*), but host \S+ support unavailable",
            _Symptom(
                Layer.KERNEL, LaunchUnsupported, "the generation of the guest's policy is off on this host", _CHECK
            ),
        ),
        (
            r"vm-type \S+ not supported by KVM|ioctl\(KVM_CREATE_VM\) failed",
            _Symptom(
                Layer.KERNEL,
                LaunchUnsupported,
                "KVM does not know this kind of guest",
                f"{_CHECK}: SEV-SNP needs Linux 6.11 and kvm_amd.sev_snp=1",
            ),
        ),
        (
            r"host kernel does not support requested",
            _Symptom(
                Layer.KERNEL, LaunchUnsupported, "KVM is older than this QEMU needs", "use a newer kernel on this host"
            ),
        ),
        (
            r"host kernel does not support the requested SEV configuration",
            _Symptom(
                Layer.KERNEL, LaunchUnsupported, "KVM lacks a feature of the guest's launch", "use a newer kernel"
            ),
        ),
        (
            r"guest_memfd",
            _Symptom(Layer.KERNEL, LaunchUnsupported, "KVM has no private guest memory", "use Linux 6.11 or newer"),
        ),
        (
            r"SNP_LAUNCH_START ret=-22 fw_error=0\b",
            _Symptom(
                Layer.KERNEL,
                LaunchPolicyRefused,
                "KVM does not take the guest's policy",
                "leave out the flags that this kernel does not know (single_socket before 6.12, those after it before"
                " 6.19), or use another host",
            ),
        ),
        (
            r"SEV is not enabled|SEV feature is not available|accelerator does not support confidential guest",
            _Symptom(Layer.KERNEL, LaunchUnsupported, "KVM has SEV off", _CHECK),
        ),
        (
            r"cbitpos check failed|reduced_phys_bits check failed",
            _Symptom(
                Layer.LIBVIRT,
                LaunchUnsupported,
                "its cached capabilities are of another processor",
                "remove /var/cache/libvirt/qemu/capabilities and restart libvirtd",
            ),
        ),
        (
            r"launch security is not supported with this QEMU|QEMU does not support SEV guest|unknown SEV type",
            _Symptom(
                Layer.LIBVIRT,
                LaunchUnsupported,
                "it finds no such launch security in QEMU",
                "install QEMU 9.1 and libvirt 10.5 or newer; remove /var/cache/libvirt/qemu/capabilities, restart"
                " libvirtd",
            ),
        ),
        (
            r"SEV measured direct kernel boot is not supported",
            _Symptom(Layer.QEMU, LaunchUnsupported, "it cannot hash a kernel", "install QEMU 6.2 or newer"),
        ),
        (
            r"missing (?:or malformed )?SEV \S+ .*capabilities cache",
            _Symptom(
                Layer.LIBVIRT,
                LaunchUnsupported,
                "its cached capabilities lack SEV",
                "remove /var/cache/libvirt/qemu/capabilities and restart libvirtd",
            ),
        ),
        (
            r"does not support SMM",
            _Symptom(Layer.QEMU, LaunchUnsupported, "SEV-SNP has no system management mode", _REPORT),
        ),
        (
            r"require in-kernel irqchip",
            _Symptom(Layer.QEMU, LaunchUnsupported, "SEV-ES needs the kernel's interrupt controller", _REPORT),
        ),
        (
            r"parameter length of \d+ not equal to \d+",
            _Symptom(
                Layer.REQUEST,
                LaunchIdentityRefused,
                "a launch option has the wrong length",
                "correct the image's hw_snp_* properties",
            ),
        ),
        (
            r"pflash with kvm requires KVM readonly memory",
            _Symptom(Layer.GUEST_FIRMWARE, FirmwareUnsuitable, "it is mapped as flash, SEV-SNP needs memory", _OVMF),
        ),
        (
            r"save reset vector|reset address is zero|SEV information block|Firmware GUID Table",
            _Symptom(Layer.GUEST_FIRMWARE, FirmwareUnsuitable, "it has no entry for SEV-ES processors", _OVMF),
        ),
        (
            r"Failed to locate SEV metadata header|Failed to add metadata page",
            _Symptom(Layer.GUEST_FIRMWARE, FirmwareUnsuitable, "it has no description of SEV-SNP's pages", _OVMF),
        ),
        (
            r"no hashes table GUID",
            _Symptom(Layer.GUEST_FIRMWARE, FirmwareUnsuitable, "it has no place for a kernel's hashes", _OVMF),
        ),
        (
            r"hashes table area is invalid",
            _Symptom(Layer.GUEST_FIRMWARE, FirmwareUnsuitable, "its place for a kernel's hashes is too small", _OVMF),
        ),
        (
            r"Failed to encrypt pflash rom|could not load (?:PC BIOS|VM firmware)",
            _Symptom(Layer.GUEST_FIRMWARE, FirmwareUnsuitable, "it could not be loaded", _OVMF),
        ),
        (
            r"CPUID validation failed",
            _Symptom(
                Layer.SECURE_PROCESSOR,
                LaunchUnsupported,
                "it does not accept the guest's processor features",
                "use a newer QEMU, or another host",
            ),
        ),
    )
)
"""In this order: a line about one thing often comes with a general one behind it."""

_LATER: Final = (
    (
        re.compile(r"cannot set up guest memory|Cannot allocate memory", re.IGNORECASE),
        _Symptom(
            Layer.MEMORY,
            NoMemory,
            "it is used up",
            "free memory on this host, raise placement.reserved_host_memory_mb, or use another host",
        ),
    ),
    (
        re.compile(r"sev\w*: failed to initialize ret=-\d+", re.IGNORECASE),
        _Symptom(Layer.KERNEL, PlatformNotReady, "KVM could not initialize the guest", _CHECK),
    ),
    (
        re.compile(r"LAUNCH_\w+ ret=-?\d+", re.IGNORECASE),
        _Symptom(Layer.KERNEL, PlatformNotReady, "KVM could not carry out a step of the launch", _CHECK),
    ),
)
"""Tried after the firmware's own status, which says more."""

_FW_ERROR: Final = re.compile(r"\bfw_err(?:or)?='?(0x[0-9a-f]{1,8}|[0-9]{1,9})\b", re.IGNORECASE)


def start_failure(name: str, error: libvirt.libvirtError) -> StartFailed:
    """The error for a domain ``name`` that did not start: its layer, its cause, what was said, and the remedy."""
    text = text_of(error)
    symptom = _symptom(text)
    if symptom is None:
        remedy = f"read the domain's log, /var/log/libvirt/qemu/{name}.log"
        return StartFailed(f"domain {name} does not start: {text}", remedy=remedy)
    return symptom.error(
        f"domain {name} does not start, because of {symptom.layer}: {symptom.cause}: {text}", remedy=symptom.remedy
    )


def _symptom(text: str) -> _Symptom | None:
    for pattern, symptom in _TEXTS:
        if pattern.search(text):
            return symptom
    for found in _FW_ERROR.finditer(text):
        status = int(found[1], 0)
        if status:
            return _STATUS.get(status) or _Symptom(
                Layer.SECURE_PROCESSOR, PlatformNotReady, f"it ended the launch with status {status:#x}", _CHECK
            )
    return next((symptom for pattern, symptom in _LATER if pattern.search(text)), None)
