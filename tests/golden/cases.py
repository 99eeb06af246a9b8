"""Whole domains, each kept as ``<name>.xml`` beside this file.

Written anew by ``pytest tests/unit/domain --update-golden``; read the difference before it is committed.
"""

import base64
from dataclasses import replace
from pathlib import Path
from uuid import UUID

from sev_agent.domain.spec import (
    ConfigDrive,
    Disk,
    DiskCache,
    DiskFormat,
    DomainSpec,
    GuestMetadata,
    KernelBoot,
    Nic,
    Rom,
    SevLaunch,
    SnpLaunch,
    SplitFlash,
    StatelessFlash,
    VirtType,
)
from sev_agent.schema import NetworkKind
from sev_agent.sev.generation import Generation
from sev_agent.sev.image_properties import CdromBus, DiskBus, ScsiModel
from sev_agent.sev.launch_options import LaunchOptions
from sev_agent.sev.policy import SevPolicy, SnpFlag, SnpPolicy

DIRECTORY = Path(__file__).parent

_UUID = UUID("6b2e1f0a-0f55-4f2e-9c3c-5f6f1a0d7a01")
_FILES = Path("/var/lib/sev-agent/instances") / str(_UUID)

MINIMAL = DomainSpec(
    uuid=_UUID,
    name=f"instance-{_UUID}",
    title="web",
    virt_type=VirtType.KVM,
    emulator=Path("/usr/bin/qemu-system-x86_64"),
    machine="q35",
    vcpus=1,
    memory_mb=512,
    firmware=SplitFlash(
        code=Path("/usr/share/OVMF/OVMF_CODE_4M.fd"),
        nvram=_FILES / "nvram.fd",
        nvram_template=Path("/usr/share/OVMF/OVMF_VARS_4M.fd"),
    ),
    disk=Disk(path=_FILES / "disk.qcow2", format=DiskFormat.QCOW2, bus=DiskBus.SCSI),
    config_drive=ConfigDrive(path=_FILES / "config.iso", bus=CdromBus.SCSI),
    scsi_model=ScsiModel.VIRTIO_SCSI,
    nics=(),
    console_log=_FILES / "console.log",
    launch_security=SevLaunch(policy=SevPolicy.from_int(0x33)),
    metadata=GuestMetadata(
        uuid=_UUID,
        name="web",
        project_id="5a1c",
        user_id="9f0e",
        flavor="sev.small",
        image_id=UUID("0d9e4c2e-6a0b-4f6d-8a52-1d4f3f2b9c10"),
        generation=Generation.SEV,
        creator="sev-agent 0.1.0",
        firmware_sha256="0f" * 32,
    ),
)

_USER = Nic(kind=NetworkKind.USER, mac="fa:16:3e:00:00:01")
_BRIDGE = Nic(kind=NetworkKind.BRIDGE, mac="fa:16:3e:00:00:02", source="br-ex")
_NETWORK = Nic(kind=NetworkKind.NETWORK, mac="52:54:00:00:00:03", source="default")
SNP = replace(
    MINIMAL,
    firmware=Rom(code=Path("/usr/share/ovmf/OVMF.amdsev.fd")),
    launch_security=SnpLaunch(policy=SnpPolicy.from_int(0x30000)),
    metadata=replace(MINIMAL.metadata, generation=Generation.SEV_SNP),
)
_KERNEL = KernelBoot(
    kernel=_FILES / "kernel", ramdisk=_FILES / "ramdisk", command_line='console=ttyS0 root=LABEL="a b" a<b&c'
)


def _filler(size: int) -> str:
    return base64.b64encode(bytes(number % 251 for number in range(size))).decode()


_IDENTITY = LaunchOptions(
    id_block=_filler(96),
    id_auth=_filler(4096),
    host_data=_filler(32),
    guest_visible_workarounds=_filler(16),
    author_key=True,
    vcek=False,
)
_ODD = "a. b:c@d+e-f_G 9"

CASES: dict[str, DomainSpec] = {
    "minimal": MINIMAL,
    "emulated": replace(MINIMAL, virt_type=VirtType.QEMU),
    "user_network": replace(MINIMAL, nics=(_USER,)),
    "two_nics": replace(MINIMAL, nics=(_BRIDGE, _NETWORK), vcpus=8, memory_mb=65536),
    "sata_cdrom": replace(MINIMAL, config_drive=replace(MINIMAL.config_drive, bus=CdromBus.SATA)),
    "virtio_disk": replace(
        MINIMAL,
        disk=replace(MINIMAL.disk, bus=DiskBus.VIRTIO, format=DiskFormat.RAW, cache=DiskCache.NONE),
        config_drive=replace(MINIMAL.config_drive, bus=CdromBus.SATA),
    ),
    "virtio_disk_scsi_cdrom": replace(MINIMAL, disk=replace(MINIMAL.disk, bus=DiskBus.VIRTIO)),
    "sata_disk": replace(
        MINIMAL,
        disk=replace(MINIMAL.disk, bus=DiskBus.SATA),
        config_drive=replace(MINIMAL.config_drive, bus=CdromBus.SATA),
    ),
    "versioned_machine": replace(MINIMAL, machine="pc-q35-9.2"),
    "sev_es": replace(
        MINIMAL,
        launch_security=SevLaunch(policy=SevPolicy.from_int(0x37)),
        metadata=replace(MINIMAL.metadata, generation=Generation.SEV_ES),
    ),
    "sev_kernel": replace(
        MINIMAL,
        kernel=replace(_KERNEL, ramdisk=None, command_line=""),
        launch_security=SevLaunch(policy=SevPolicy.from_int(0x33), options=LaunchOptions(kernel_hashes=True)),
    ),
    "sev_stateless": replace(MINIMAL, firmware=StatelessFlash(code=Path("/usr/share/OVMF/OVMF_AMDSEV.fd"))),
    "sev_limited": replace(MINIMAL, memory_limit_mb=512 + 256),
    "sev_es_rom": replace(
        MINIMAL,
        firmware=Rom(code=Path("/usr/share/ovmf/OVMF.amdsev.fd")),
        launch_security=SevLaunch(policy=SevPolicy.from_int(0x3701_003F)),
        metadata=replace(MINIMAL.metadata, generation=Generation.SEV_ES),
    ),
    "snp": SNP,
    "snp_policy": replace(
        SNP,
        launch_security=SnpLaunch(
            policy=SnpPolicy(SnpFlag.MUST_BE_ONE | SnpFlag.SINGLE_SOCKET | SnpFlag.RAPL_DIS, abi_major=1, abi_minor=55),
            options=LaunchOptions(vcek=True),
        ),
    ),
    "snp_identity": replace(SNP, launch_security=SnpLaunch(policy=SnpPolicy.from_int(0x30000), options=_IDENTITY)),
    "snp_kernel": replace(
        SNP,
        kernel=_KERNEL,
        launch_security=SnpLaunch(policy=SnpPolicy.from_int(0x30000), options=LaunchOptions(kernel_hashes=True)),
    ),
    "snp_limited": replace(SNP, memory_limit_mb=512 + 256),
    "odd_names": replace(
        MINIMAL,
        title=_ODD,
        metadata=replace(
            MINIMAL.metadata,
            name=_ODD,
            flavor="<&\"'> ]]> é 漢 \U0001f512",
            project_id="  ",
            user_id="tab\tline\nend\r",
        ),
    ),
}
