"""Why an encrypted guest does not start: the words of firmware, KVM, QEMU and libvirt, put down to one layer each.

Sources: the texts of QEMU 9.1 to 10.0 (``target/i386/sev.c``, ``hw/i386/pc_sysfw*.c``, ``accel/kvm``) and libvirt
(``qemu_process.c``, ``qemu_validate.c``).
"""

import re
from typing import Final

import libvirt  # noqa: TID251 - this package is the one that may

from sev_agent.hypervisor.errors import NoMemory, NoSlot, StartFailed, text_of
from sev_agent.hypervisor.firmware_status import STATUS
from sev_agent.hypervisor.launch_errors import (
    CHECK,
    LOCKING,
    OVMF,
    REPORT,
    SLOTS,
    DeviceUnusable,
    FirmwareUnsuitable,
    LaunchIdentityRefused,
    LaunchPolicyRefused,
    LaunchUnsupported,
    Layer,
    MemoryNotLocked,
    PlatformNotReady,
    Symptom,
)

_TEXTS: Final = tuple(
    (re.compile(pattern, re.IGNORECASE), symptom)
    for pattern, symptom in (
        (
            r"Failed to open /dev/sev 'No such file",
            Symptom(Layer.DEVICE, DeviceUnusable, "it is not there", f"{CHECK}: the kernel's module ccp makes it"),
        ),
        (
            r"Failed to open /dev/sev",
            Symptom(
                Layer.DEVICE,
                DeviceUnusable,
                "QEMU may not open it",
                "let QEMU's user read and write it (udev: group kvm), and list it in cgroup_device_acl of qemu.conf",
            ),
        ),
        (
            r"failed to get platform status",
            Symptom(Layer.SECURE_PROCESSOR, PlatformNotReady, "it does not tell its status", f"{CHECK} (BIOS)"),
        ),
        # KVM_SEV_INIT fails with EBUSY when the ASIDs, or the misc cgroup's share of them, are used up: Linux,
        # arch/x86/kvm/svm/sev.c, sev_asid_new.
        (r"failed to initialize ret=-16\b", Symptom(Layer.KERNEL, NoSlot, "every slot (ASID) is taken", SLOTS)),
        (
            r"cannot limit locked memory",
            Symptom(Layer.LIMITS, MemoryNotLocked, "libvirt may not raise it for the guest", LOCKING),
        ),
        (
            r"failed to register region",
            Symptom(Layer.LIMITS, MemoryNotLocked, "it is too low for the guest's memory", LOCKING),
        ),
        (
            r"failed to lock memory|mlockall",
            Symptom(Layer.LIMITS, MemoryNotLocked, "QEMU could not lock the guest's memory", LOCKING),
        ),
        (
            r"guest policy requires (SEV\S*), but host \S+ support unavailable",
            Symptom(Layer.KERNEL, LaunchUnsupported, "the generation of the guest's policy is off on this host", CHECK),
        ),
        (
            r"vm-type \S+ not supported by KVM|ioctl\(KVM_CREATE_VM\) failed",
            Symptom(
                Layer.KERNEL,
                LaunchUnsupported,
                "KVM does not know this kind of guest",
                f"{CHECK}: SEV-SNP needs Linux 6.11 and kvm_amd.sev_snp=1",
            ),
        ),
        (
            r"host kernel does not support requested",
            Symptom(
                Layer.KERNEL, LaunchUnsupported, "KVM is older than this QEMU needs", "use a newer kernel on this host"
            ),
        ),
        (
            r"host kernel does not support the requested SEV configuration",
            Symptom(Layer.KERNEL, LaunchUnsupported, "KVM lacks a feature of the guest's launch", "use a newer kernel"),
        ),
        (
            r"guest_memfd",
            Symptom(Layer.KERNEL, LaunchUnsupported, "KVM has no private guest memory", "use Linux 6.11 or newer"),
        ),
        (
            r"SNP_LAUNCH_START ret=-22 fw_error=0\b",
            Symptom(
                Layer.KERNEL,
                LaunchPolicyRefused,
                "KVM does not take the guest's policy",
                "leave out the flags that this kernel does not know, use a newer one, or another host",
            ),
        ),
        (
            r"SEV is not enabled|SEV feature is not available|accelerator does not support confidential guest",
            Symptom(Layer.KERNEL, LaunchUnsupported, "KVM has SEV off", CHECK),
        ),
        (
            r"cbitpos check failed|reduced_phys_bits check failed",
            Symptom(
                Layer.LIBVIRT,
                LaunchUnsupported,
                "its cached capabilities are of another processor",
                "remove /var/cache/libvirt/qemu/capabilities and restart libvirtd",
            ),
        ),
        (
            r"launch security is not supported with this QEMU|QEMU does not support SEV guest|unknown SEV type",
            Symptom(
                Layer.LIBVIRT,
                LaunchUnsupported,
                "it finds no such launch security in QEMU",
                "install QEMU 9.1 and libvirt 10.5 or newer; remove /var/cache/libvirt/qemu/capabilities, restart"
                " libvirtd",
            ),
        ),
        (
            r"SEV measured direct kernel boot is not supported",
            Symptom(Layer.QEMU, LaunchUnsupported, "it cannot hash a kernel", "install QEMU 6.2 or newer"),
        ),
        (
            r"missing (?:or malformed )?SEV \S+ .*capabilities cache",
            Symptom(
                Layer.LIBVIRT,
                LaunchUnsupported,
                "its cached capabilities lack SEV",
                "remove /var/cache/libvirt/qemu/capabilities and restart libvirtd",
            ),
        ),
        (
            r"does not support SMM",
            Symptom(Layer.QEMU, LaunchUnsupported, "SEV-SNP has no system management mode", REPORT),
        ),
        (
            r"require in-kernel irqchip",
            Symptom(Layer.QEMU, LaunchUnsupported, "SEV-ES needs the kernel's interrupt controller", REPORT),
        ),
        (
            r"parameter length of \d+ not equal to \d+",
            Symptom(
                Layer.REQUEST,
                LaunchIdentityRefused,
                "a launch option has the wrong length",
                "correct the image's hw_snp_* properties",
            ),
        ),
        (
            r"pflash with kvm requires KVM readonly memory",
            Symptom(Layer.GUEST_FIRMWARE, FirmwareUnsuitable, "it is mapped as flash, SEV-SNP needs memory", OVMF),
        ),
        (
            r"save reset vector|reset address is zero|SEV information block|Firmware GUID Table",
            Symptom(Layer.GUEST_FIRMWARE, FirmwareUnsuitable, "it has no entry for SEV-ES processors", OVMF),
        ),
        (
            r"Failed to locate SEV metadata header|Failed to add metadata page",
            Symptom(Layer.GUEST_FIRMWARE, FirmwareUnsuitable, "it has no description of SEV-SNP's pages", OVMF),
        ),
        (
            r"no hashes table GUID",
            Symptom(Layer.GUEST_FIRMWARE, FirmwareUnsuitable, "it has no place for a kernel's hashes", OVMF),
        ),
        (
            r"hashes table area is invalid",
            Symptom(
                Layer.GUEST_FIRMWARE,
                FirmwareUnsuitable,
                "its place for a kernel's hashes is missing or too small",
                OVMF,
            ),
        ),
        (
            r"Failed to encrypt pflash rom|could not load (?:PC BIOS|VM firmware)",
            Symptom(Layer.GUEST_FIRMWARE, FirmwareUnsuitable, "it could not be loaded", OVMF),
        ),
        (
            r"CPUID validation failed",
            Symptom(
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
        Symptom(
            Layer.MEMORY,
            NoMemory,
            "it is used up",
            "free memory on this host, raise placement.reserved_host_memory_mb, or use another host",
        ),
    ),
    (
        re.compile(r"sev\w*: failed to initialize ret=-\d+", re.IGNORECASE),
        Symptom(Layer.KERNEL, PlatformNotReady, "KVM could not initialize the guest", CHECK),
    ),
    (
        re.compile(r"LAUNCH_\w+ ret=-?\d+", re.IGNORECASE),
        Symptom(Layer.KERNEL, PlatformNotReady, "KVM could not carry out a step of the launch", CHECK),
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


def _symptom(text: str) -> Symptom | None:
    for pattern, symptom in _TEXTS:
        if pattern.search(text):
            return symptom
    for found in _FW_ERROR.finditer(text):
        status = int(found[1], 0)
        if status:
            return STATUS.get(status) or Symptom(
                Layer.SECURE_PROCESSOR, PlatformNotReady, f"it ended the launch with status {status:#x}", CHECK
            )
    return next((symptom for pattern, symptom in _LATER if pattern.search(text)), None)
