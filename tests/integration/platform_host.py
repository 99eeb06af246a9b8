"""A compute host of the lab with real libvirtd and QEMU, and guests that can boot on it."""

import asyncio
import contextlib
import re
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID, uuid4

from sev_agent.compute import config_drive
from sev_agent.hypervisor.platform import read_platform
from sev_agent.lab.platform.compute_host import ComputeHost
from sev_agent.lab.platform.emulator.kind import Kind
from sev_agent.lab.platform.guest_image import GUEST_MARK
from sev_agent.lab.progress import Silent
from sev_agent.lab.service import GUESTS, Service, mark
from sev_agent.lab.supervisor import Supervisor
from sev_agent.schema import Flavor, ImageReference, Instance

BOOT_PATIENCE = 120.0
PATIENCE = 60.0

DOMAIN = """
<domain type='qemu'>
  <name>{name}</name><uuid>{uuid}</uuid>
  <memory unit='MiB'>{memory}</memory><vcpu>1</vcpu>
  <memoryBacking><locked/></memoryBacking>
  <os><type arch='x86_64' machine='q35'>hvm</type>{firmware}</os>
  <features><acpi/><apic/></features>
  <on_poweroff>destroy</on_poweroff><on_crash>destroy</on_crash>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/><source file='{directory}/disk.qcow2'/><target dev='sda' bus='scsi'/>
    </disk>
    <disk type='file' device='cdrom'>
      <driver name='qemu' type='raw'/><source file='{directory}/config.iso'/><target dev='sdb' bus='scsi'/><readonly/>
    </disk>
    <controller type='scsi' model='virtio-scsi'><driver iommu='on'/></controller>
    <interface type='user'><model type='virtio'/><driver iommu='on'/><rom enabled='no'/></interface>
    <rng model='virtio'><backend model='random'>/dev/urandom</backend><driver iommu='on'/></rng>
    <serial type='pty'><log file='{directory}/console.log' append='off'/><target type='isa-serial' port='0'/></serial>
    <memballoon model='none'/>
  </devices>
  {security}
</domain>
"""


FLASH = """<loader readonly='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE_4M.fd</loader>
<nvram>{directory}/vars.fd</nvram>"""
MEMORY = "<loader type='rom' stateless='yes'>/usr/share/ovmf/OVMF.fd</loader>"


def launch_security(policy: int = 0x33) -> str:
    return f"<launchSecurity type='sev'><policy>{policy:#06x}</policy></launchSecurity>"


SEV_ES = launch_security(0x37)
SEV_SNP = "<launchSecurity type='sev-snp'><policy>0x00030000</policy></launchSecurity>"


@dataclass(frozen=True)
class Result:
    status: int
    output: str
    errors: str


@dataclass(frozen=True)
class Lab:
    """A host with its services running."""

    host: ComputeHost
    supervisor: Supervisor
    directory: Path
    image: Path

    @property
    def services(self) -> tuple[Service, ...]:
        return self.host.services(mark(self.directory, GUESTS))

    @property
    def used(self) -> int:
        return self.used_of("sev")

    def used_of(self, pool: str) -> int:
        return read_platform(self.host.platform_root).misc_current[pool]

    async def start(self) -> None:
        await self.host.prepare()
        for service in self.services:
            await self.supervisor.start(service)

    async def virsh(self, *arguments: str) -> Result:
        process = await asyncio.create_subprocess_exec(
            *("virsh", "--quiet", "--connect", self.host.uri, *arguments),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        output, errors = await process.communicate()
        return Result(process.returncode or 0, output.decode(), errors.decode())

    def define(self, name: str, *, security: str | None = None, memory: int = 256, firmware: str = FLASH) -> "Guest":
        """Write the files of a guest that can boot; blocks shortly."""
        directory = self.directory / name
        directory.mkdir()
        guest = Guest(lab=self, name=name, uuid=uuid4(), directory=directory)
        shutil.copy("/usr/share/OVMF/OVMF_VARS_4M.fd", directory / "vars.fd")
        shutil.copy(self.image, directory / "disk.qcow2")
        flavor = Flavor(vcpus=1, memory_mb=memory, root_gb=1)
        instance = Instance(uuid=guest.uuid, name=name, flavor=flavor, image=ImageReference(id=uuid4()))
        (directory / "config.iso").write_bytes(config_drive.render(instance, ()))
        text = DOMAIN.format(
            name=name,
            uuid=guest.uuid,
            directory=directory,
            memory=memory,
            firmware=firmware.format(directory=directory),
            security=launch_security() if security is None else security,
        )
        (directory / "domain.xml").write_text(text)
        return guest


@dataclass(frozen=True)
class Guest:
    lab: Lab
    name: str
    uuid: UUID
    directory: Path

    @property
    def console(self) -> str:
        path = self.directory / "console.log"
        return path.read_text(errors="replace") if path.exists() else ""

    @property
    def pid(self) -> int:
        return int((self.lab.host.directory / f"run/qemu/{self.name}.pid").read_text())

    async def start(self) -> Result:
        return await self.lab.virsh("create", str(self.directory / "domain.xml"), "--validate")

    async def said(self, word: str, patience: float = BOOT_PATIENCE) -> str:
        """What the guest printed after ``word``, when it has."""
        pattern = re.compile(rf"{re.escape(f'{GUEST_MARK} {word}')}([^\r\n]*)[\r\n]")
        await until(lambda: pattern.search(self.console) is not None, patience, lambda: self.console[-2000:])
        found = pattern.search(self.console)
        assert found is not None
        return found.group(1).strip()

    async def state(self) -> str:
        return (await self.lab.virsh("domstate", self.name)).output.strip()


async def until(condition: Callable[[], bool], patience: float, report: Callable[[], object] = str) -> None:
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline, report()
        await asyncio.sleep(0.05)


@contextlib.asynccontextmanager
async def running_lab(image: Path, *, name: str, slots: int, kind: Kind = Kind.SEV) -> AsyncIterator[Lab]:
    # pytest's own directories are too deep for the address of a socket.
    directory = Path(tempfile.mkdtemp(prefix="sev-"))
    host = ComputeHost(name=name, directory=directory / "hosts" / name, slots=slots, kind=kind)
    lab = Lab(host=host, supervisor=Supervisor(directory, Silent()), directory=directory, image=image)
    try:
        await lab.start()
        yield lab
    finally:
        await lab.supervisor.stop_all(lab.services)
        await lab.supervisor.end_marked()
        shutil.rmtree(directory)
