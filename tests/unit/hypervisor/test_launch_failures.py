"""What QEMU 9.1 to 10.0 and libvirt write when a launch fails, and what an operator is told of it."""

import libvirt  # noqa: TID251 - the tests of the package that may
import pytest

from sev_agent.errors import Exhausted
from sev_agent.hypervisor.errors import NoMemory, NoSlot, StartFailed
from sev_agent.hypervisor.launch_errors import (
    DeviceUnusable,
    FirmwareUnsuitable,
    LaunchIdentityRefused,
    LaunchPolicyRefused,
    LaunchUnsupported,
    Layer,
    MemoryNotLocked,
    PlatformBroken,
    PlatformNotReady,
)
from sev_agent.hypervisor.launch_failures import start_failure
from sev_agent.lab.platform.emulator.failures import FAILURES

QEMU = "internal error: QEMU unexpectedly closed the monitor (vm='g'): 2026-11-22T10:00:00Z qemu-system-x86_64: "
KVM = f"{QEMU}-accel kvm: "
CPU, KERNEL, OVMF, LIMITS = Layer.SECURE_PROCESSOR, Layer.KERNEL, Layer.GUEST_FIRMWARE, Layer.LIMITS


def failure(text: str) -> StartFailed:
    error = libvirt.libvirtError("virDomainCreate() failed")
    error.err = (libvirt.VIR_ERR_INTERNAL_ERROR, 10, text, 2, None, None, None, -1, -1)
    return start_failure("g", error)


@pytest.mark.parametrize(
    ("text", "expected", "layer"),
    [
        (f"{QEMU}sev_common_kvm_init: failed to initialize ret=-16 fw_error=0 ''", NoSlot, KERNEL),
        (f"{QEMU}sev_kvm_init: failed to initialize ret=-16 fw_error=0 ''", NoSlot, KERNEL),
        (f"{QEMU}sev_common_kvm_init: failed to initialize ret=-5 fw_error=0 ''", PlatformNotReady, KERNEL),
        (f"{QEMU}sev_common_kvm_init: failed to initialize ret=-1 fw_error=123 ''", PlatformNotReady, CPU),
        (
            f"{QEMU}sev_common_kvm_init: failed to get platform status ret=-1 fw_error='1: Platform state is invalid'",
            PlatformNotReady,
            CPU,
        ),
        (
            f"{QEMU}sev_launch_start: LAUNCH_START ret=1 fw_error=23 'Required firmware resource depleted'",
            NoSlot,
            CPU,
        ),
        (f"{QEMU}sev_launch_start: LAUNCH_START ret=1 fw_error=12 'ASID is already owned'", NoSlot, CPU),
        (f"{QEMU}sev_launch_start: LAUNCH_START ret=1 fw_error=7 'Policy is not allowed'", LaunchPolicyRefused, CPU),
        (
            f"{KVM}sev_snp_launch_start: SNP_LAUNCH_START ret=-5 fw_error=7 'Policy is not allowed'",
            LaunchPolicyRefused,
            CPU,
        ),
        (f"{KVM}sev_snp_launch_start: SNP_LAUNCH_START ret=-22 fw_error=0 ''", LaunchPolicyRefused, KERNEL),
        (f"{QEMU}SNP_LAUNCH_FINISH ret=-5 fw_error=10 'Bad signature'", LaunchIdentityRefused, CPU),
        (f"{QEMU}SNP_LAUNCH_FINISH ret=-22 fw_error=0 ''", PlatformNotReady, KERNEL),
        (f"{QEMU}SNP_LAUNCH_UPDATE ret=-5 fw_error=19 'Hardware error'", PlatformBroken, CPU),
        (
            f"{KVM}sev_common_kvm_init: guest policy requires SEV-ES, but host SEV-ES support unavailable",
            LaunchUnsupported,
            KERNEL,
        ),
        (f"{KVM}vm-type SEV-SNP not supported by KVM", LaunchUnsupported, KERNEL),
        (f"{QEMU}ioctl(KVM_CREATE_VM) failed: Invalid argument", LaunchUnsupported, KERNEL),
        (f"{KVM}SEV: host kernel does not support requested SEV-ES VM type.", LaunchUnsupported, KERNEL),
        (f"{KVM}KVM does not support guest_memfd", LaunchUnsupported, KERNEL),
        (f"{KVM}sev_common_kvm_init: cbitpos check failed, host '51' requested '47'", LaunchUnsupported, Layer.LIBVIRT),
        (
            "unsupported configuration: 'sev-snp' launch security is not supported with this QEMU binary",
            LaunchUnsupported,
            Layer.LIBVIRT,
        ),
        (f"{KVM}SEV-SNP does not support SMM.", LaunchUnsupported, Layer.QEMU),
        (f"{QEMU}parameter length of 12 not equal to 16", LaunchIdentityRefused, Layer.REQUEST),
        (f"{QEMU}pflash with kvm requires KVM readonly memory support", FirmwareUnsuitable, OVMF),
        (f"{QEMU}failed to locate and/or save reset vector", FirmwareUnsuitable, OVMF),
        (f"{QEMU}sev_snp_launch_finish: Failed to locate SEV metadata header", FirmwareUnsuitable, OVMF),
        (f"{QEMU}SEV: kernel specified but guest firmware has no hashes table GUID", FirmwareUnsuitable, OVMF),
        (f"{QEMU}qemu: could not load PC BIOS '/fw/x.fd'", FirmwareUnsuitable, OVMF),
        (f"{QEMU}SEV-SNP: CPUID validation failed for function 0x1, index: 0x0", LaunchUnsupported, CPU),
        (
            f"{KVM}sev_common_kvm_init: Failed to open /dev/sev 'No such file or directory'",
            DeviceUnusable,
            Layer.DEVICE,
        ),
        (f"{KVM}sev_common_kvm_init: Failed to open /dev/sev 'Permission denied'", DeviceUnusable, Layer.DEVICE),
        ("cannot limit locked memory of process 7 to 512: Operation not permitted", MemoryNotLocked, LIMITS),
        (
            f"{QEMU}sev_ram_block_added: failed to register region (0x7f2e+0x1000) error 'Cannot allocate memory'",
            MemoryNotLocked,
            LIMITS,
        ),
        (f"{QEMU}cannot set up guest memory 'pc.ram': Cannot allocate memory", NoMemory, Layer.MEMORY),
    ],
)
def test_a_failed_launch_is_told_by_its_cause(text: str, expected: type[StartFailed], layer: Layer) -> None:
    """Each keeps libvirt's own words, and names the domain, the layer at fault and a remedy."""
    error = failure(text)

    assert type(error) is expected
    assert text in error.message
    assert error.message.startswith(f"domain g does not start, because of {layer}: ")
    assert error.remedy
    assert error.retryable


def test_what_nobody_knows() -> None:
    """A text that is not known is told as it is, with where to read more."""
    error = failure("Requested operation is not valid: something else")

    assert type(error) is StartFailed
    assert error.message == "domain g does not start: Requested operation is not valid: something else"
    assert "/var/log/libvirt/qemu/g.log" in str(error)


@pytest.mark.parametrize("snp", [False, True])
def test_every_failure_of_the_lab_has_its_own_text(snp: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """No two failures that the simulated platform can meet are told alike, and none as an unknown one."""
    told: dict[str, str] = {}
    for name, armed in FAILURES.items():
        error = failure(QEMU + " ".join(str(line) for line in armed.error(snp=snp).args))
        assert type(error) is not StartFailed, name
        cause = error.message.partition(QEMU)[0]
        assert cause not in told, f"{name} and {told.get(cause)}"
        told[cause] = name


def test_a_host_without_a_free_slot_is_an_exhausted_one() -> None:
    """The scheduler may try the next host."""
    error = failure("sev_kvm_init: failed to initialize ret=-16 fw_error=0")

    assert isinstance(error, Exhausted)
    assert error.code == "hypervisor.no_slot"
