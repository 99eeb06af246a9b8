"""What can go wrong below, in words for the person who must act."""

from typing import ClassVar

import libvirt  # noqa: TID251 - this package is the one that may

from sev_agent.errors import Exhausted, NotFound, SevAgentError, Unavailable


class HypervisorError(SevAgentError):
    """libvirt refused or failed an operation."""

    code: ClassVar[str] = "hypervisor.failed"
    retryable: ClassVar[bool] = True


class HypervisorUnavailable(HypervisorError, Unavailable):
    """libvirt cannot be reached, or does not answer in time."""

    code = "hypervisor.unavailable"


class NoAnswer(HypervisorUnavailable):
    """A call to libvirt takes too long; the connection may be well, and then nothing but another call tells."""


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


class StartUnsettled(HypervisorUnavailable):
    """libvirt has not said yet whether the domain starts: it must be looked at again before anything is undone."""

    code = "hypervisor.start_unsettled"


class NoSlot(StartFailed, Exhausted):
    """The secure processor has no free ASID: every encrypted-guest slot of this host is taken."""

    code = "hypervisor.no_slot"


class NoMemory(StartFailed, Exhausted):
    """The host cannot give the guest its memory."""

    code = "hypervisor.no_memory"


_HOST_FAULTS = frozenset(
    {
        libvirt.VIR_ERR_SYSTEM_ERROR,
        libvirt.VIR_ERR_NO_MEMORY,
        libvirt.VIR_ERR_OPERATION_TIMEOUT,
        libvirt.VIR_ERR_WRITE_FAILED,
        libvirt.VIR_ERR_RESOURCE_BUSY,
    }
)


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
