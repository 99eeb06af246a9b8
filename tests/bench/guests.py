"""The guests of the benchmarks: requested of the daemon, or made ready for libvirt alone; both from the same XML."""

import asyncio
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from uuid import UUID, uuid4

import aiohttp

from sev_agent import __version__, schema
from sev_agent.compute.config_drive import write_config_drive
from sev_agent.compute.disk import create_disk
from sev_agent.compute.firmware_files import create_nvram, firmware_digest
from sev_agent.compute.image_cache import CachedImage
from sev_agent.compute.image_inspection import declared_format, stored_virtual_size
from sev_agent.compute.instance_files import InstanceFiles
from sev_agent.config import AgentConfig, ServiceSection
from sev_agent.domain.builder import build_domain
from sev_agent.domain.firmware import FirmwareWanted, FlashBuild, choose_firmware
from sev_agent.domain.from_instance import GuestFiles, HostPlatform, domain_spec
from sev_agent.domain.spec import VirtType
from sev_agent.hypervisor.firmware_descriptors import descriptors
from sev_agent.lab.accounts import admin
from sev_agent.lab.cloud import Lab
from sev_agent.openstack.glance import Glance, Image
from sev_agent.openstack.identity import KeystoneIdentity
from sev_agent.sev import tags
from sev_agent.sev.image_properties import ImageProperties
from sev_agent.sev.rules import encryption_request
from tests.images import make_qcow2

MEMORY_MB: Final = 64
"""MiB. The memory of an encrypted guest is locked, so each MiB is a part of the start that nobody can make shorter."""

_ROOT_GB = 1
_UPLOAD_SECONDS = 60.0


async def upload_image(lab: Lab) -> Image:
    """An empty disk in the lab's Glance, with the properties of the method: what boots is not measured."""
    with tempfile.TemporaryDirectory() as directory:
        path = await asyncio.to_thread(make_qcow2, Path(directory) / "bench.qcow2")
        async with aiohttp.ClientSession() as session:
            identity = KeystoneIdentity(session, admin(lab.cloud))
            glance = Glance(session, identity, ServiceSection(endpoint=lab.cloud.glance_url))
            image = await glance.create_image("bench", disk_format="qcow2", visibility="public", properties=tags.IMAGE)
            await glance.upload(image.id, path, total_timeout=_UPLOAD_SECONDS)
            return await glance.get_image(image.id)


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
    """Makes guests for libvirt alone, in ``directory``, over the image in the cache of the daemon with ``config``."""

    config: AgentConfig
    image: Image
    directory: Path

    async def prepare(self) -> tuple[UUID, str]:
        """A guest's files, and the XML that the daemon would define for it."""
        instance = schema.parse(schema.Instance, request(self.image.id))
        files = InstanceFiles(self.directory / str(instance.uuid))
        files.directory.mkdir(mode=0o711, parents=True)
        properties = ImageProperties.read(self.image.properties)
        encryption = encryption_request(instance.flavor.extra_specs, self.image.properties)
        hypervisor = self.config.hypervisor
        wanted = FirmwareWanted(generation=encryption.generation, machine=properties.machine_type)
        firmware = choose_firmware(descriptors(hypervisor.firmware_dirs), wanted)
        assert isinstance(firmware.build, FlashBuild)
        assert firmware.build.nvram_template is not None
        await create_disk(files.disk, self._base(), _ROOT_GB)
        await write_config_drive(files.config_drive, instance, [])
        await create_nvram(firmware.build.nvram_template, files.nvram)
        spec = domain_spec(
            instance,
            image=properties,
            encryption=encryption,
            files=GuestFiles(
                disk=files.disk, config_drive=files.config_drive, nvram=files.nvram, console_log=files.console_log
            ),
            firmware=firmware,
            firmware_sha256=await firmware_digest(firmware.code),
            platform=HostPlatform(
                virt_type=VirtType(hypervisor.virt_type),
                emulator=hypervisor.emulator,
                creator=f"sev-agent {__version__}",
            ),
        )
        return instance.uuid, build_domain(spec)

    def _base(self) -> CachedImage:
        (path,) = (self.config.host.state_dir / "images").glob(f"{self.image.id}-*")
        disk_format = declared_format(self.image)
        return CachedImage(path, disk_format, stored_virtual_size(path, disk_format))
