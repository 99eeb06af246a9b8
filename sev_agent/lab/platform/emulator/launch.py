"""Whether a launch succeeds: what KVM, the firmware and QEMU check of the guest that is asked for, in their order.

After AMD's documents 55766 (SEV API) and 56860 (SEV-SNP firmware ABI), KVM's ``svm/sev.c`` and QEMU 10's
``target/i386/sev.c``, ``hw/i386/pc_sysfw.c``.
"""

from typing import NamedTuple

from .command_line import Launch
from .failures import POLICY_REFUSED, LaunchError, Stage, firmware_error, invalid_start, on_accelerator
from .image import Image, read_image
from .kind import Kind

API_MAJOR = 1
API_MINOR = 55
C_BIT_POSITION = 51

_POLICY_ES = 1 << 2
_POLICY_RESERVED = 0xFFC0
_SNP_MUST_BE_ONE = 1 << 17
_SNP_SMT = 1 << 16
_SNP_KNOWN = 0x03FF_FFFF

_HASH_TABLE_SIZE = 176
"""Bytes of QEMU's padded table of hashes."""


class Generation(NamedTuple):
    """How one generation is launched: the slot pool it uses and the name that QEMU's text gives it."""

    pool: str
    title: str


_SEV = Generation("sev", "SEV")
_SEV_ES = Generation("sev_es", "SEV-ES")
_SEV_SNP = Generation("sev_es", "SEV-SNP")


def generation(launch: Launch) -> Generation:
    if launch.is_snp:
        return _SEV_SNP
    return _SEV_ES if launch.policy & _POLICY_ES else _SEV


def check_host(launch: Launch, kind: Kind) -> None:
    """What is checked before a slot is taken. Raises ``LaunchError``."""
    wanted = generation(launch)
    if wanted is _SEV_SNP and kind is not Kind.SEV_SNP:
        raise LaunchError("-accel kvm: vm-type SEV-SNP not supported by KVM")
    position = 0 if kind is Kind.NONE else C_BIT_POSITION
    if launch.cbitpos != position:
        raise on_accelerator(
            f"sev_common_kvm_init: cbitpos check failed, host '{position}' requested '{launch.cbitpos}'"
        )
    if wanted is _SEV_ES and kind is Kind.SEV:
        raise on_accelerator("sev_common_kvm_init: guest policy requires SEV-ES, but host SEV-ES support unavailable")


def check_guest(launch: Launch, kind: Kind) -> None:
    """What is checked of a guest that has a slot. Raises ``LaunchError``."""
    _check_policy(launch, kind)
    image = read_image(launch.firmware)
    if launch.is_snp and launch.is_flash:
        # KVM has no read-only memory for guests with private memory.
        raise LaunchError("pflash with kvm requires KVM readonly memory support")
    if generation(launch) is not _SEV and not image.reset_vector:
        raise LaunchError("failed to locate and/or save reset vector")
    if launch.kernel_hashes and launch.kernel:
        _check_hashes(image)


def check_run(launch: Launch) -> None:
    """What is checked when the virtual CPUs first run. Raises ``LaunchError``."""
    if launch.is_snp and not read_image(launch.firmware).metadata:
        raise LaunchError("sev_snp_launch_finish: Failed to locate SEV metadata header")


def no_slot() -> LaunchError:
    """Every ASID is in use: KVM_SEV_INIT gives EBUSY."""
    return firmware_error(Stage.INIT, 0, snp=False, result=-16)


def _check_policy(launch: Launch, kind: Kind) -> None:
    policy = launch.policy
    refused = firmware_error(Stage.START, POLICY_REFUSED, snp=launch.is_snp)
    if launch.is_snp:
        if policy & ~_SNP_KNOWN or not policy & _SNP_MUST_BE_ONE:
            raise invalid_start()
        # The hosts that are simulated run two threads on each core.
        if ((policy >> 8) & 0xFF, policy & 0xFF) > (API_MAJOR, API_MINOR) or not policy & _SNP_SMT:
            raise refused
        return
    required = ((policy >> 16) & 0xFF, (policy >> 24) & 0xFF)
    if policy & _POLICY_RESERVED or required > (API_MAJOR, API_MINOR):
        raise refused
    if generation(launch) is _SEV_ES and kind is Kind.SEV_SNP:
        raise refused


def _check_hashes(image: Image) -> None:
    if image.hashes is None:
        raise LaunchError("SEV: kernel specified but guest firmware has no hashes table GUID")
    base, size = image.hashes
    if not base or size < _HASH_TABLE_SIZE:
        raise LaunchError(f"SEV: guest firmware hashes table area is invalid (base={base:#x} size={size:#x})")
