"""From what a tenant asked for to what the domain is to be."""

from dataclasses import dataclass
from pathlib import Path

from sev_agent.domain.firmware import FirmwareChoice
from sev_agent.domain.identity import domain_name
from sev_agent.domain.network import derived_mac
from sev_agent.domain.spec import (
    ConfigDrive,
    Disk,
    DiskFormat,
    DomainSpec,
    Firmware,
    GuestMetadata,
    Nic,
    SevLaunch,
    VirtType,
)
from sev_agent.schema import Instance, NetworkKind
from sev_agent.sev.image_properties import ImageProperties
from sev_agent.sev.policy import SevPolicy, SnpPolicy
from sev_agent.sev.refusals import ModelUnsupported, Subject
from sev_agent.sev.rules import IMAGE_MODEL, OFFERED, EncryptionRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestFiles:
    """Where the files of one guest lie on its host."""

    disk: Path
    disk_format: DiskFormat = DiskFormat.QCOW2
    config_drive: Path
    nvram: Path
    console_log: Path


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
    platform: HostPlatform,
) -> DomainSpec:
    """Raises ``ModelUnsupported`` for a generation that has no domain here."""
    return DomainSpec(
        uuid=instance.uuid,
        name=domain_name(instance.uuid),
        title=instance.name,
        virt_type=platform.virt_type,
        emulator=platform.emulator,
        machine=image.machine_type,
        vcpus=instance.flavor.vcpus,
        memory_mb=instance.flavor.memory_mb,
        firmware=Firmware(
            code=firmware.code,
            code_format=firmware.code_format,
            nvram=files.nvram,
            nvram_template=firmware.nvram_template,
            nvram_format=firmware.nvram_format,
        ),
        disk=Disk(path=files.disk, format=files.disk_format, bus=image.disk_bus),
        config_drive=ConfigDrive(path=files.config_drive, bus=image.cdrom_bus),
        scsi_model=image.scsi_model,
        nics=nics(instance),
        console_log=files.console_log,
        launch_security=_launch(encryption),
        metadata=_metadata(instance, encryption, platform.creator),
    )


def nics(instance: Instance) -> tuple[Nic, ...]:
    """The NICs that the guest will see; those of kind ``none`` are not among them."""
    return tuple(
        Nic(kind=network.type, source=network.source, mac=network.mac or derived_mac(instance.uuid, index))
        for index, network in enumerate(instance.networks)
        if network.type is not NetworkKind.NONE
    )


def _launch(encryption: EncryptionRequest) -> SevLaunch:
    match encryption.policy:
        case SevPolicy() as policy:
            return SevLaunch(policy=policy)
        case SnpPolicy():
            raise ModelUnsupported(
                Subject.IMAGE,
                IMAGE_MODEL,
                expected=OFFERED[0].value,
                found=encryption.generation.value,
                remedy=Subject.IMAGE.set_command(IMAGE_MODEL, OFFERED[0].value),
            )


def _metadata(instance: Instance, encryption: EncryptionRequest, creator: str) -> GuestMetadata:
    return GuestMetadata(
        uuid=instance.uuid,
        name=instance.name,
        project_id=instance.project_id,
        user_id=instance.user_id,
        flavor=instance.flavor.name,
        image_id=instance.image.id,
        generation=encryption.generation,
        creator=creator,
    )
