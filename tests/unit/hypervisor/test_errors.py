import libvirt  # noqa: TID251 - the tests of the package that may
import pytest

from sev_agent.hypervisor.errors import DefineRefused, HypervisorError, define_failure, operation_failure


def libvirt_error(text: str, code: int = libvirt.VIR_ERR_INTERNAL_ERROR) -> libvirt.libvirtError:
    error = libvirt.libvirtError("virDomainCreate() failed")
    error.err = (code, 10, text, 2, None, None, None, -1, -1)
    return error


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
