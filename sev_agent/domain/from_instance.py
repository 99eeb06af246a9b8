"""From what a tenant asked for to what the domain is to be."""

from dataclasses import dataclass
from pathlib import Path

from sev_agent.domain.firmware import FirmwareChoice, FlashBuild, MemoryBuild
from sev_agent.domain.identity import domain_name
from sev_agent.domain.spec import (
    ConfigDrive,
    Disk,
    DiskFormat,
    DomainSpec,
    Firmware,
    GuestMetadata,
    KernelBoot,
    LaunchSecurity,
    Nic,
    Rom,
    SevLaunch,
    SnpLaunch,
    SplitFlash,
    StatelessFlash,
    VirtType,
)
from sev_agent.schema import Instance, NetworkKind, derived_mac
from sev_agent.sev.image_properties import ImageProperties
from sev_agent.sev.policy import SevPolicy, SnpPolicy
from sev_agent.sev.rules import EncryptionRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestFiles:
    """Where the files of one guest lie on its host; a kernel only where its image names one."""

    disk: Path
    disk_format: DiskFormat = DiskFormat.QCOW2
    config_drive: Path
    nvram: Path
    console_log: Path
    kernel: Path | None = None
    ramdisk: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HostPlatform:
    """What all guests of a host share. ``creator`` is the agent's name and version."""

    virt_type: VirtType
    emulator: Path
    creator: str


def domain_spec(
    instance: Instance,
    *,
    image: ImageProperties,
    encryption: EncryptionRequest,
    files: GuestFiles,
    firmware: FirmwareChoice,
    firmware_sha256: str,
    platform: HostPlatform,
    memory_limit_mb: int | None = None,
) -> DomainSpec:
    """The domain of ``instance``. ``firmware`` must be chosen for its generation."""
    return DomainSpec(
        uuid=instance.uuid,
        name=domain_name(instance.uuid),
        title=instance.name,
        virt_type=platform.virt_type,
        emulator=platform.emulator,
        machine=image.machine_type,
        vcpus=instance.flavor.vcpus,
        memory_mb=instance.flavor.memory_mb,
        firmware=_firmware(firmware, files.nvram),
        disk=Disk(path=files.disk, format=files.disk_format, bus=image.disk_bus),
        config_drive=ConfigDrive(path=files.config_drive, bus=image.cdrom_bus),
        scsi_model=image.scsi_model,
        nics=nics(instance),
        console_log=files.console_log,
        launch_security=_launch(encryption),
        metadata=_metadata(instance, encryption, platform.creator, firmware_sha256),
        kernel=_kernel(image, files),
        memory_limit_mb=memory_limit_mb,
    )


def nics(instance: Instance) -> tuple[Nic, ...]:
    """The NICs that the guest will see; those of kind ``none`` are not among them."""
    return tuple(
        Nic(kind=network.type, source=network.source, mac=network.mac or derived_mac(instance.uuid, index))
        for index, network in enumerate(instance.networks)
        if network.type is not NetworkKind.NONE
    )


def _firmware(choice: FirmwareChoice, nvram: Path) -> Firmware:
    match choice.build:
        case FlashBuild(nvram_template=Path() as template) as flash:
            return SplitFlash(
                code=flash.code,
                code_format=flash.code_format,
                nvram=nvram,
                nvram_template=template,
                nvram_format=flash.nvram_format,
            )
        case FlashBuild() as flash:
            return StatelessFlash(code=flash.code, code_format=flash.code_format)
        case MemoryBuild() as memory:
            return Rom(code=memory.code)


def _kernel(image: ImageProperties, files: GuestFiles) -> KernelBoot | None:
    if image.kernel is None or files.kernel is None:
        return None
    return KernelBoot(kernel=files.kernel, ramdisk=files.ramdisk, command_line=image.kernel.command_line)


def _launch(encryption: EncryptionRequest) -> LaunchSecurity:
    match encryption.policy:
        case SevPolicy() as policy:
            return SevLaunch(policy=policy, options=encryption.options)
        case SnpPolicy() as policy:
            return SnpLaunch(policy=policy, options=encryption.options)


def _metadata(instance: Instance, encryption: EncryptionRequest, creator: str, firmware_sha256: str) -> GuestMetadata:
    return GuestMetadata(
        uuid=instance.uuid,
        name=instance.name,
        project_id=instance.project_id,
        user_id=instance.user_id,
        flavor=instance.flavor.name,
        image_id=instance.image.id,
        generation=encryption.generation,
        creator=creator,
        firmware_sha256=firmware_sha256,
    )
