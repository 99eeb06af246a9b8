import libvirt  # noqa: TID251 - the tests of the package that may
import pytest

from sev_agent.errors import Exhausted, SevAgentError
from sev_agent.hypervisor.errors import (
    DefineRefused,
    HypervisorError,
    NoMemory,
    NoSlot,
    StartFailed,
    define_failure,
    operation_failure,
    start_failure,
)

_QEMU = "internal error: QEMU unexpectedly closed the monitor (vm='g'): 2026-11-22T10:00:00Z qemu-system-x86_64: "


def libvirt_error(text: str, code: int = libvirt.VIR_ERR_INTERNAL_ERROR) -> libvirt.libvirtError:
    error = libvirt.libvirtError("virDomainCreate() failed")
    error.err = (code, 10, text, 2, None, None, None, -1, -1)
    return error


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"{_QEMU}sev_common_kvm_init: failed to initialize ret=-16 fw_error=0 ''", NoSlot),
        (f"{_QEMU}sev_kvm_init: failed to initialize ret=-16 fw_error=0 ''", NoSlot),
        (f"{_QEMU}sev_launch_start: LAUNCH_START ret=1 fw_error=23 'Resource limit'", NoSlot),
        (f"{_QEMU}sev_launch_start: LAUNCH_START ret=1 fw_error=12 'ASID is already owned'", NoSlot),
        (f"{_QEMU}sev_launch_start: LAUNCH_START ret=1 fw_error=7 'Policy is not allowed'", StartFailed),
        (f"{_QEMU}sev_common_kvm_init: failed to initialize ret=-1 fw_error=123 ''", StartFailed),
        ("cannot limit locked memory of process 7 to 512: Operation not permitted", StartFailed),
        (f"{_QEMU}cannot set up guest memory 'pc.ram': Cannot allocate memory", NoMemory),
        ("Requested operation is not valid: something else", StartFailed),
    ],
)
def test_a_failed_start_is_told_by_its_cause(text: str, expected: type[SevAgentError]) -> None:
    """Exhaustion is told from other failures, and each keeps libvirt's own words, names the domain and a remedy."""
    error = start_failure("g", libvirt_error(text))
    assert type(error) is expected
    assert text in error.message
    assert "domain g" in error.message
    assert error.remedy
    assert error.retryable


def test_a_host_without_a_free_slot_is_an_exhausted_one() -> None:
    """The scheduler may try the next host."""
    error = start_failure("g", libvirt_error("sev_kvm_init: failed to initialize ret=-16 fw_error=0"))
    assert isinstance(error, Exhausted)
    assert error.code == "hypervisor.no_slot"


@pytest.mark.parametrize(
    ("code", "retryable"),
    [
        (libvirt.VIR_ERR_XML_ERROR, False),
        (libvirt.VIR_ERR_XML_INVALID_SCHEMA, False),
        (libvirt.VIR_ERR_CONFIG_UNSUPPORTED, False),
        (libvirt.VIR_ERR_OPERATION_FAILED, False),
        (libvirt.VIR_ERR_SYSTEM_ERROR, True),
    ],
)
def test_a_refused_definition_is_final_unless_the_host_is_at_fault(code: int, retryable: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """XML that libvirt refuses will be refused again; a disk that is full may not be."""
    error = define_failure(libvirt_error("text", code))
    assert isinstance(error, HypervisorError)
    assert error.retryable is retryable
    assert isinstance(error, DefineRefused) is not retryable
    assert error.remedy


def test_domain_that_libvirt_lost() -> None:
    """A lock that libvirt does not give is told with the way out that its own files leave."""
    lost = libvirt_error("cannot acquire state change lock", libvirt.VIR_ERR_OPERATION_TIMEOUT)
    error = operation_failure("destroy", "one", lost)
    assert error.retryable
    assert "state change lock" in error.message
    assert "/run/libvirt/qemu" in (error.remedy or "")
