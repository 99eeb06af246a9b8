"""The guests of the benchmarks: requested of the daemon, or made ready for libvirt alone; both from the same XML."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from uuid import UUID, uuid4

from sev_agent import __version__, schema
from sev_agent.compute.config_drive import write_config_drive
from sev_agent.compute.disk import create_disk
from sev_agent.compute.firmware_files import create_nvram
from sev_agent.compute.image_cache import CachedImage
from sev_agent.compute.image_inspection import declared_format, stored_virtual_size
from sev_agent.compute.record import InstanceFiles
from sev_agent.config import AgentConfig
from sev_agent.domain.builder import build_domain
from sev_agent.domain.firmware import choose_firmware
from sev_agent.domain.from_instance import GuestFiles, HostPlatform, domain_spec
from sev_agent.domain.spec import VirtType
from sev_agent.hypervisor.firmware_descriptors import descriptors
from sev_agent.openstack.glance import Image
from sev_agent.sev.image_properties import ImageProperties
from sev_agent.sev.rules import encryption_request

MEMORY_MB: Final = 256
"""MiB; the least that the lab's image asks for."""

_ROOT_GB = 1


def request(image_id: UUID) -> dict[str, Any]:
    """A build request for a new small guest without a network."""
    uuid = str(uuid4())
    return {
        "uuid": uuid,
        "name": f"bench-{uuid[:8]}",
        "flavor": {
            "name": "bench",
            "vcpus": 1,
            "memory_mb": MEMORY_MB,
            "root_gb": _ROOT_GB,
            "extra_specs": {"hw:mem_encryption": "True"},
        },
        "image": {"id": str(image_id)},
        "networks": [],
    }


@dataclass(frozen=True, slots=True)
class BareGuests:
    """Makes guests for libvirt alone: ``image`` as Glance has it, ``base`` its file, ``directory`` for theirs."""

    config: AgentConfig
    image: Image
    base: Path
    directory: Path

    async def prepare(self) -> tuple[UUID, str]:
        """A guest's files, and the XML that the daemon would define for it."""
        instance = schema.parse(schema.Instance, request(self.image.id))
        files = InstanceFiles(self.directory / str(instance.uuid))
        files.directory.mkdir(mode=0o711, parents=True)
        properties = ImageProperties.read(self.image.properties)
        encryption = encryption_request(instance.flavor.extra_specs, self.image.properties)
        hypervisor = self.config.hypervisor
        firmware = choose_firmware(
            descriptors(hypervisor.firmware_dirs), encryption.generation, machine=properties.machine_type
        )
        disk_format = declared_format(self.image)
        cached = CachedImage(self.base, disk_format, stored_virtual_size(self.base, disk_format))
        await create_disk(files.disk, cached, _ROOT_GB)
        await write_config_drive(files.config_drive, instance, [])
        await create_nvram(firmware.nvram_template, files.nvram)
        spec = domain_spec(
            instance,
            image=properties,
            encryption=encryption,
            files=GuestFiles(
                disk=files.disk, config_drive=files.config_drive, nvram=files.nvram, console_log=files.console_log
            ),
            firmware=firmware,
            platform=HostPlatform(
                virt_type=VirtType(hypervisor.virt_type),
                emulator=hypervisor.emulator,
                creator=f"sev-agent {__version__}",
            ),
        )
        return instance.uuid, build_domain(spec)
