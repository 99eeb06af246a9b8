"""What can go wrong below, in words for the person who must act."""

import re
from typing import ClassVar, NamedTuple

import libvirt  # noqa: TID251 - this package is the one that may

from sev_agent.errors import Exhausted, NotFound, SevAgentError, Unavailable


class HypervisorError(SevAgentError):
    """libvirt refused or failed an operation."""

    code: ClassVar[str] = "hypervisor.failed"
    retryable: ClassVar[bool] = True


class HypervisorUnavailable(HypervisorError, Unavailable):
    """libvirt cannot be reached, or does not answer in time."""

    code = "hypervisor.unavailable"


class DomainNotFound(HypervisorError, NotFound):
    """libvirt knows no such domain."""

    code = "hypervisor.domain_not_found"
    retryable = False


class DefineRefused(HypervisorError):
    """libvirt does not accept the domain's XML."""

    code = "hypervisor.define_refused"
    retryable = False


class StartFailed(HypervisorError):
    """The domain is defined but does not start here; another host may start it."""

    code = "hypervisor.start_failed"


class NoSlot(StartFailed, Exhausted):
    """The secure processor has no free ASID: every encrypted-guest slot of this host is taken."""

    code = "hypervisor.no_slot"


class NoMemory(StartFailed, Exhausted):
    """The host cannot give the guest its memory."""

    code = "hypervisor.no_memory"


class _Symptom(NamedTuple):
    pattern: re.Pattern[str]
    error: type[StartFailed]
    remedy: str


_SLOTS_REMEDY = "delete or stop an encrypted guest of this host, lower encryption.limit, or use another host"

_SYMPTOMS = (
    # KVM_SEV_INIT fails with EBUSY when the ASIDs (or the misc cgroup's share of them) are used up: Linux,
    # arch/x86/kvm/svm/sev.c, sev_asid_new; QEMU, target/i386/sev.c, prints "failed to initialize ret=-16".
    _Symptom(re.compile(r"sev\w*: failed to initialize ret=-16\b", re.IGNORECASE), NoSlot, _SLOTS_REMEDY),
    # The firmware's own refusals: ASID_OWNED (0xC) and RESOURCE_LIMIT (0x17), AMD's SEV API document, status codes.
    _Symptom(re.compile(r"\bfw_error='?(?:12|23|0x0*c|0x0*17)\b", re.IGNORECASE), NoSlot, _SLOTS_REMEDY),
    _Symptom(
        re.compile(r"cannot limit locked memory|failed to lock memory|mlockall", re.IGNORECASE),
        StartFailed,
        "let libvirtd raise the limit of locked memory: CAP_SYS_RESOURCE, or LimitMEMLOCK=infinity in its unit",
    ),
    _Symptom(
        re.compile(r"cannot set up guest memory|Cannot allocate memory", re.IGNORECASE),
        NoMemory,
        "free memory on this host, raise placement.reserved_host_memory_mb, or use another host",
    ),
    _Symptom(
        re.compile(r"sev_\w+: .*\bfw_error=|SEV is not enabled|SEV feature is not available|Failed to open /dev/sev"),
        StartFailed,
        "run 'sev-agent check' on this host",
    ),
)


_HOST_FAULTS = frozenset(
    {
        libvirt.VIR_ERR_SYSTEM_ERROR,
        libvirt.VIR_ERR_NO_MEMORY,
        libvirt.VIR_ERR_OPERATION_TIMEOUT,
        libvirt.VIR_ERR_WRITE_FAILED,
        libvirt.VIR_ERR_RESOURCE_BUSY,
    }
)


def start_failure(name: str, error: libvirt.libvirtError) -> StartFailed:
    """The error for a domain ``name`` that did not start."""
    text = text_of(error)
    for symptom in _SYMPTOMS:
        if symptom.pattern.search(text):
            return symptom.error(f"domain {name} does not start: {text}", remedy=symptom.remedy)
    return StartFailed(f"domain {name} does not start: {text}", remedy="read the domain's log below /var/log/libvirt")


def define_failure(error: libvirt.libvirtError) -> HypervisorError:
    """The error for a domain that libvirt did not take: its XML's fault, or this host's."""
    if error.get_error_code() in _HOST_FAULTS:
        return HypervisorError(
            f"this host cannot define the domain: {text_of(error)}",
            remedy="correct on this host what libvirt names (a missing file, a full disk, permissions), then retry",
        )
    return DefineRefused(
        f"libvirt refuses the domain: {text_of(error)}",
        remedy="compare flavor and image properties with what this host's libvirt and QEMU support",
    )


def operation_failure(operation: str, name: object, error: libvirt.libvirtError) -> HypervisorError:
    """The error for any other ``operation`` on the domain ``name``."""
    if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
        return DomainNotFound(f"cannot {operation} domain {name}: libvirt does not know it")
    if error.get_error_code() == libvirt.VIR_ERR_OPERATION_TIMEOUT:
        return stuck(name, f"cannot {operation} it: {text_of(error)}")
    return HypervisorError(
        f"cannot {operation} domain {name}: {text_of(error)}", remedy="look into the journal of libvirtd and retry"
    )


def stuck(name: object, what: str) -> HypervisorError:
    """The error for a domain whose lock libvirt does not give: another operation has it, or a libvirtd that was killed.

    What a killed libvirtd had begun is in its file of the running domain, which the next one believes (tried, 11.3).
    """
    return HypervisorError(
        f"domain {name}: {what}",
        remedy="wait for what else works on the domain; if nothing does, stop libvirtd, remove the domain's file below"
        " /run/libvirt/qemu if that says pid='0', and start libvirtd",
    )


def text_of(error: libvirt.libvirtError) -> str:
    """The message of libvirt itself, on one line."""
    return " ".join((error.get_error_message() or str(error)).split())
