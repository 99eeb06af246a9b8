"""From an accepted request to a running guest, in steps that can each be run again."""

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import structlog

from sev_agent import __version__
from sev_agent.compute.accounting import Accounting
from sev_agent.compute.admission import Admission
from sev_agent.compute.config_drive import write_config_drive
from sev_agent.compute.disk import create_disk
from sev_agent.compute.firmware_files import create_nvram, firmware_digest
from sev_agent.compute.image_cache import CachedImage, ImageCache
from sev_agent.compute.image_inspection import check_declared, check_fits
from sev_agent.compute.instance_files import InstanceFiles
from sev_agent.compute.kernel_files import KernelFiles
from sev_agent.compute.progress import Progress, Step
from sev_agent.compute.record import Record, State
from sev_agent.compute.record_store import RecordStore
from sev_agent.compute.refusal import explained
from sev_agent.config import AgentConfig
from sev_agent.domain.builder import build_domain
from sev_agent.domain.firmware import FirmwareChoice, FirmwareWanted, FlashBuild, choose_firmware
from sev_agent.domain.from_instance import GuestFiles, HostPlatform, domain_spec, nics
from sev_agent.domain.spec import VirtType
from sev_agent.durable import write_durably
from sev_agent.errors import Conflict, NotFound
from sev_agent.hypervisor.domains import Domains
from sev_agent.hypervisor.firmware_descriptors import descriptors
from sev_agent.openstack.glance import Glance, Image
from sev_agent.openstack.placement import Full
from sev_agent.sev.footprint import memory_limit_mb
from sev_agent.sev.image_properties import ImageProperties, KernelImages
from sev_agent.sev.rules import EncryptionRequest, encryption_request
from sev_agent.uninterrupted import in_thread, uninterrupted

log = structlog.stdlib.get_logger(__name__)


class ForeignDomain(Conflict):
    """libvirt has a domain of this UUID that this project did not build."""

    code = "instance.foreign_domain"


@dataclass(frozen=True, slots=True)
class FirmwareUsed:
    """The firmware that a guest was built with, and what it was then."""

    path: Path
    sha256: str


class DefinitionLost(NotFound):
    """Neither libvirt nor the host knows any more what the guest's domain was."""

    code = "instance.definition_lost"


class Builder:
    """Builds guests, and undoes what a failed build or a deletion leaves."""

    def __init__(
        self,
        *,
        store: RecordStore,
        glance: Glance,
        cache: ImageCache,
        accounting: Accounting,
        domains: Domains,
        admission: Admission,
        config: AgentConfig,
    ) -> None:
        self._store = store
        self._glance = glance
        self._cache = cache
        self._accounting = accounting
        self._domains = domains
        self._admission = admission
        self._hypervisor = config.hypervisor
        self._kernels = KernelFiles(glance, config.images)
        self._encryption = config.encryption
        self._overhead_mb = config.placement.guest_overhead_mb

    async def build(self, record: Record, progress: Progress, *, resumed: bool) -> Record:
        """Bring the guest of ``record`` up, and return its record as ``ACTIVE``, which the caller saves.

        Raises what the first failing step raises; nothing is undone here. A ``resumed`` build takes up what an
        earlier run of the daemon left, a guest that runs already included.
        """
        await self._refuse_stranger(record)
        if resumed and await self._runs_already(record):
            await self._accounting.claim(record)
        else:
            record = await self._bring_up(record, progress)
        return record.with_(state=State.ACTIVE)

    async def redefine(self, record: Record) -> None:
        """Make the guest known to libvirt again, as it was built, where somebody took its domain away.

        Raises ``DefinitionLost``, and what libvirt says against it.
        """
        try:
            xml = await asyncio.to_thread(self._store.files(record.uuid).definition.read_text)
        except OSError as error:
            raise DefinitionLost(
                f"libvirt does not know instance {record.uuid} any more, nor does this host: {error}",
                remedy="delete it, or define its domain by hand",
            ) from error
        await self._domains.define(xml)

    async def undo(self, record: Record, progress: Progress) -> None:
        """Remove all that was made for ``record``: domain, files, allocation. Repeatable.

        Raises ``Unavailable`` when libvirt or Placement cannot be asked; then it must be called again.
        """
        exists = await self._domains.state(record.uuid) is not None
        # A request may name the UUID of a domain that is not ours: neither that one nor its slot is ever touched.
        is_strangers = exists and not await self._domains.is_managed(record.uuid)
        if exists and not is_strangers:
            with progress.step(Step.DESTROY):
                await self._domains.destroy(record.uuid)
            with progress.step(Step.UNDEFINE):
                await self._domains.undefine(record.uuid)
                # A start that was still on its way at libvirt goes on without a definition.
                await self._domains.destroy(record.uuid)
        with progress.step(Step.FILES):
            await in_thread(self._store.remove_files, record.uuid)
        if not is_strangers:
            with progress.step(Step.RELEASE):
                await self._accounting.release(record.uuid)

    async def _runs_already(self, record: Record) -> bool:
        if record.generation is None:
            return False
        return await self._domains.runs(record.uuid)

    async def _refuse_stranger(self, record: Record) -> None:
        """Raises ``ForeignDomain``: to define ours under the same name and UUID would replace what somebody made."""
        if await self._domains.state(record.uuid) is not None and not await self._domains.is_managed(record.uuid):
            raise ForeignDomain(
                f"libvirt on this host has a domain with UUID {record.uuid} that is not ours",
                field="instance.uuid",
                remedy="use a new UUID, or undefine the domain if nobody needs it",
            )

    async def _bring_up(self, record: Record, progress: Progress) -> Record:
        instance, files = record.instance, self._store.files(record.uuid)
        with progress.step(Step.IMAGE):
            image = await self._glance.get_image(instance.image.id)
            bounds = self._encryption.policy_bounds
            encryption = encryption_request(instance.flavor.extra_specs, image.properties, bounds=bounds)
            properties = ImageProperties.read(image.properties)
            check_declared(image, instance.flavor)
            self._admission.check_policy(encryption.policy)
            await self._admission.check(encryption.generation, instance.flavor.memory_mb)
        record = record.with_(generation=encryption.generation)
        async with AsyncExitStack() as lease:
            try:
                async with asyncio.TaskGroup() as side_by_side:
                    # The claim waits for Placement, the files for the disk, the domain for libvirt: none waits for
                    # another. Only the guest's first instruction waits for all of them.
                    side_by_side.create_task(self._claim(record, progress), name=f"claim-{record.uuid}")
                    side_by_side.create_task(self._config_drive(record, files, progress), name=f"drive-{record.uuid}")
                    if properties.kernel is not None:
                        fetched = self._kernel(image, properties.kernel, files, progress)
                        side_by_side.create_task(fetched, name=f"kernel-{record.uuid}")
                    defined = side_by_side.create_task(
                        self._define(record, properties, encryption, progress), name=f"define-{record.uuid}"
                    )
                    saved = side_by_side.create_task(
                        self._disk(record, image, files, lease, progress), name=f"disk-{record.uuid}"
                    )
            except BaseExceptionGroup as group:
                _raise_first(group)
            used = defined.result()
            record = saved.result().with_(firmware=used.path, firmware_sha256=used.sha256)
            with progress.step(Step.START):
                await uninterrupted(self._domains.start(record.uuid))
        return record

    async def _claim(self, record: Record, progress: Progress) -> None:
        with progress.step(Step.CLAIM):
            try:
                # Placement may carry out a request that we no longer wait for: then nobody would give the slot back.
                await uninterrupted(self._accounting.claim(record))
            except Full as error:
                raise explained(error, record.instance.flavor) from error

    async def _disk(
        self, record: Record, image: Image, files: InstanceFiles, lease: AsyncExitStack, progress: Progress
    ) -> Record:
        with progress.step(Step.CACHE):
            base: CachedImage = await lease.enter_async_context(self._cache.acquire(image))
            check_fits(base.virtual_size, image, record.instance.flavor)
            # The journal names the base before a disk leans on it, so that it is never evicted from under one.
            record = await self._save(record.with_(base_image=base.path))
        with progress.step(Step.DISK):
            await create_disk(files.disk, base, record.instance.flavor.root_gb)
        return record

    async def _kernel(self, image: Image, images: KernelImages, files: InstanceFiles, progress: Progress) -> None:
        with progress.step(Step.KERNEL):
            await self._kernels.fetch(image, images, files)

    async def _config_drive(self, record: Record, files: InstanceFiles, progress: Progress) -> None:
        with progress.step(Step.CONFIG_DRIVE):
            macs = [nic.mac for nic in nics(record.instance)]
            await uninterrupted(write_config_drive(files.config_drive, record.instance, macs))

    async def _define(
        self, record: Record, properties: ImageProperties, encryption: EncryptionRequest, progress: Progress
    ) -> FirmwareUsed:
        with progress.step(Step.FIRMWARE):
            found = await asyncio.to_thread(descriptors, self._hypervisor.firmware_dirs)
            wanted = FirmwareWanted(
                generation=encryption.generation,
                machine=properties.machine_type,
                asks_stateless=properties.stateless,
            )
            choice = choose_firmware(found, wanted)
            used = FirmwareUsed(choice.code, await firmware_digest(choice.code))
            match choice.build:
                case FlashBuild(nvram_template=Path() as template):
                    await uninterrupted(create_nvram(template, self._store.files(record.uuid).nvram))
                case _:
                    pass  # it keeps no variables
        with progress.step(Step.DEFINE):
            # Half of libvirt's time for it goes into the check against its schema.
            domain = self._domain(record, properties, encryption, choice, used)
            await in_thread(write_durably, self._store.files(record.uuid).definition, domain.encode())
            await uninterrupted(self._domains.define(domain))
        return used

    def _domain(
        self,
        record: Record,
        image: ImageProperties,
        encryption: EncryptionRequest,
        firmware: FirmwareChoice,
        used: FirmwareUsed,
    ) -> str:
        paths = self._store.files(record.uuid)
        spec = domain_spec(
            record.instance,
            image=image,
            encryption=encryption,
            files=GuestFiles(
                disk=paths.disk,
                config_drive=paths.config_drive,
                nvram=paths.nvram,
                console_log=paths.console_log,
                kernel=paths.kernel if image.kernel else None,
                ramdisk=paths.ramdisk if image.kernel and image.kernel.ramdisk else None,
            ),
            firmware=firmware,
            firmware_sha256=used.sha256,
            platform=HostPlatform(
                virt_type=VirtType(self._hypervisor.virt_type),
                emulator=self._hypervisor.emulator,
                creator=f"sev-agent {__version__}",
            ),
            memory_limit_mb=self._memory_limit(record.instance.flavor.memory_mb),
        )
        return build_domain(spec)

    def _memory_limit(self, memory_mb: int) -> int | None:
        match self._encryption.memory_limit:
            case "none":
                return None
            case "footprint":
                return memory_limit_mb(memory_mb, self._overhead_mb)

    async def _save(self, record: Record) -> Record:
        await in_thread(self._store.save, record)
        return record


def bases_in_use(store: RecordStore) -> Callable[[], set[Path]]:
    """What the image cache must keep: the images below the disks of every instance that still has one."""

    def bases() -> set[Path]:
        kept = {record.base_image for record in store if record.base_image is not None and record.state.has_files}
        return kept | store.bases_set_aside

    return bases


def _raise_first(group: BaseExceptionGroup[BaseException]) -> NoReturn:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    raise error from error.__cause__
