"""What an image says of the virtual hardware it needs, read into types.

Names and values are Nova's (``nova.objects.image_meta``). What is not set gets what an encrypted guest can have.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Self, TypeVar
from uuid import UUID

from sev_agent.sev import refusals
from sev_agent.sev.booleans import read_boolean
from sev_agent.sev.refusals import RequestRefused, Subject

FIRMWARE_TYPE = "hw_firmware_type"
FIRMWARE_STATELESS = "hw_firmware_stateless"
MACHINE_TYPE = "hw_machine_type"
CDROM_BUS = "hw_cdrom_bus"
DISK_BUS = "hw_disk_bus"
SCSI_MODEL = "hw_scsi_model"
SCSI_MODEL_OTHER_SPELLING = "hw_scsi_mode"
VIF_MODEL = "hw_vif_model"
SECURE_BOOT = "os_secure_boot"
ARCHITECTURES = ("hw_architecture", "architecture")
KERNEL_ID = "kernel_id"
RAMDISK_ID = "ramdisk_id"
COMMAND_LINE = "os_command_line"

_MAX_COMMAND_LINE = 2048
"""Bytes that an x86 kernel reads (COMMAND_LINE_SIZE of Linux, arch/x86/include/asm/setup.h)."""

_Q35 = re.compile(r"q35|pc-q35-[A-Za-z0-9._-]{1,64}")


class FirmwareType(StrEnum):
    UEFI = "uefi"


class DiskBus(StrEnum):
    """The bus of a disk. ``scsi`` is virtio-scsi."""

    SCSI = "scsi"
    VIRTIO = "virtio"
    SATA = "sata"


class CdromBus(StrEnum):
    """The bus of a CD-ROM. q35 has no IDE; virtio-blk cannot eject; there is no USB controller."""

    SCSI = "scsi"
    SATA = "sata"


class ScsiModel(StrEnum):
    VIRTIO_SCSI = "virtio-scsi"


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelImages:
    """A kernel that QEMU hands to the firmware, in place of a boot loader on the disk: images of Glance."""

    kernel: UUID
    ramdisk: UUID | None = None
    command_line: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageProperties:
    """The virtual hardware of an encrypted guest, as its image wants it.

    ``stateless`` firmware keeps no variables of its own.
    """

    firmware_type: FirmwareType = FirmwareType.UEFI
    machine_type: str = "q35"
    disk_bus: DiskBus = DiskBus.SCSI
    cdrom_bus: CdromBus = CdromBus.SCSI
    scsi_model: ScsiModel = ScsiModel.VIRTIO_SCSI
    stateless: bool = False
    kernel: KernelImages | None = None

    @classmethod
    def read(cls, properties: Mapping[str, str]) -> Self:
        """Raises ``RequestRefused`` at the first property that an encrypted guest cannot have."""
        check_secure_boot(properties)
        check_architecture(properties)
        check_vif_model(properties)
        return cls(
            firmware_type=firmware_type(properties),
            machine_type=machine_type(properties),
            disk_bus=disk_bus(properties),
            cdrom_bus=cdrom_bus(properties),
            scsi_model=scsi_model(properties),
            stateless=is_stateless(properties),
            kernel=kernel_images(properties),
        )


V = TypeVar("V", bound=StrEnum)


def firmware_type(properties: Mapping[str, str]) -> FirmwareType:
    """UEFI must be asked for by name, as Nova wants it: an image made for BIOS would not boot."""
    return _choice(properties, FIRMWARE_TYPE, FirmwareType, refusals.FirmwareNotUefi, default=None)


def machine_type(properties: Mapping[str, str]) -> str:
    """``q35`` or one of its versions; q35 where nothing is said."""
    value = properties.get(MACHINE_TYPE, "q35")
    if not _Q35.fullmatch(value):
        raise _refused(
            refusals.MachineNotQ35,
            MACHINE_TYPE,
            value,
            expected="'q35' or a version of it such as 'pc-q35-9.2'",
            settable="q35",
            reason="firmware for encrypted guests needs q35",
        )
    return value


def disk_bus(properties: Mapping[str, str]) -> DiskBus:
    return _choice(properties, DISK_BUS, DiskBus, refusals.DiskBusUnsupported, default=DiskBus.SCSI)


def cdrom_bus(properties: Mapping[str, str]) -> CdromBus:
    """The bus asked for; else one that the guest has a driver for: virtio-scsi if its disk is there, or else SATA."""
    # The disk's own bus may be at fault: that is the other rule's to say.
    on_scsi = properties.get(DISK_BUS, DiskBus.SCSI) == DiskBus.SCSI
    default = CdromBus.SCSI if on_scsi else CdromBus.SATA
    reasons = {
        "ide": "q35 has no IDE controller",
        "virtio": "virtio-blk has no CD-ROM",
        "usb": "encrypted guests get no USB controller",
    }
    reason = reasons.get(properties.get(CDROM_BUS, ""))
    return _choice(properties, CDROM_BUS, CdromBus, refusals.CdromBusUnsupported, default=default, reason=reason)


def scsi_model(properties: Mapping[str, str]) -> ScsiModel:
    """Read from ``hw_scsi_model``, or ``hw_scsi_mode``, the other spelling in use."""
    both = (properties.get(SCSI_MODEL), properties.get(SCSI_MODEL_OTHER_SPELLING))
    match both:
        case (str() as one, str() as other) if one != other:
            raise refusals.ScsiModelConflict(
                Subject.IMAGE,
                SCSI_MODEL,
                expected=f"the same as '{SCSI_MODEL_OTHER_SPELLING}', which is {other!r}",
                found=repr(one),
                remedy=Subject.IMAGE.unset_command(SCSI_MODEL_OTHER_SPELLING),
            )
        case (None, str()):
            name = SCSI_MODEL_OTHER_SPELLING
        case _:
            name = SCSI_MODEL
    return _choice(properties, name, ScsiModel, refusals.ScsiModelUnsupported, default=ScsiModel.VIRTIO_SCSI)


def check_vif_model(properties: Mapping[str, str]) -> None:
    """Every NIC is virtio; an image that needs another would come up without a network."""
    if (value := properties.get(VIF_MODEL, "virtio")) != "virtio":
        raise _refused(refusals.VifModelUnsupported, VIF_MODEL, value, expected="'virtio'", settable="virtio")


def check_architecture(properties: Mapping[str, str]) -> None:
    """AMD's encryption is of x86-64; images say it under Nova's or under Glance's name."""
    for name in ARCHITECTURES:
        if (value := properties.get(name, "x86_64")) != "x86_64":
            raise _refused(refusals.ArchitectureUnsupported, name, value, expected="'x86_64'", settable="x86_64")


def is_stateless(properties: Mapping[str, str]) -> bool:
    """Whether the firmware keeps no variables of its own."""
    return bool(read_boolean(Subject.IMAGE, properties, FIRMWARE_STATELESS, settable="false"))


def kernel_images(properties: Mapping[str, str]) -> KernelImages | None:
    """The kernel to boot, as Nova's images name it; an image that names none boots from its disk."""
    kernel = _image_id(properties, KERNEL_ID)
    ramdisk = _image_id(properties, RAMDISK_ID)
    command_line = properties.get(COMMAND_LINE, "")
    if len(command_line.encode()) >= _MAX_COMMAND_LINE or not command_line.isprintable():
        raise refusals.KernelInvalid(
            Subject.IMAGE,
            COMMAND_LINE,
            expected=f"one printable line of less than {_MAX_COMMAND_LINE} bytes",
            found=f"{len(command_line.encode())} bytes",
            remedy=Subject.IMAGE.unset_command(COMMAND_LINE),
        )
    if kernel is None:
        if ramdisk is not None:
            raise refusals.KernelInvalid(
                Subject.IMAGE,
                RAMDISK_ID,
                expected="not set",
                found=repr(properties[RAMDISK_ID]),
                reason=f"'{KERNEL_ID}' is not set",
                remedy=Subject.IMAGE.unset_command(RAMDISK_ID),
            )
        return None
    return KernelImages(kernel=kernel, ramdisk=ramdisk, command_line=command_line)


def _image_id(properties: Mapping[str, str], name: str) -> UUID | None:
    # Glance and Nova write an empty text where an image has none.
    if not (value := properties.get(name)):
        return None
    try:
        return UUID(value)
    except ValueError:
        raise refusals.KernelInvalid(
            Subject.IMAGE,
            name,
            expected="the UUID of an image",
            found=repr(value),
            remedy=Subject.IMAGE.unset_command(name),
        ) from None


def check_secure_boot(properties: Mapping[str, str]) -> None:
    """Secure Boot needs firmware with system management mode, whose memory the encryption does not cover."""
    value = properties.get(SECURE_BOOT, "disabled")
    if value not in {"disabled", "optional"}:
        raise _refused(
            refusals.SecureBootUnsupported,
            SECURE_BOOT,
            value,
            expected="'disabled', 'optional' or not set",
            settable="disabled",
            reason="the firmware for Secure Boot needs system management mode, which encrypted guests do not have",
        )


def _choice(
    properties: Mapping[str, str],
    name: str,
    choices: type[V],
    refusal: type[RequestRefused],
    *,
    default: V | None,
    reason: str | None = None,
) -> V:
    value = properties.get(name)
    if value is None and default is not None:
        return default
    for choice in choices:
        if choice.value == value:
            return choice
    names = [repr(choice.value) for choice in choices]
    expected = " or ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
    first = next(iter(choices)).value
    raise _refused(refusal, name, value, expected=expected, settable=first, reason=reason)


def _refused(
    refusal: type[RequestRefused],
    name: str,
    value: str | None,
    *,
    expected: str,
    settable: str,
    reason: str | None = None,
) -> RequestRefused:
    return refusal(
        Subject.IMAGE,
        name,
        expected=expected,
        found="not set" if value is None else repr(value),
        remedy=Subject.IMAGE.set_command(name, settable),
        reason=reason,
    )
