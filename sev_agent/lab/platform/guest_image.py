"""The lab's guest: a small real Linux of Debian's cloud kernel and busybox in one EFI file.

It shows on the serial console what an operator wants to see of a first boot: its UUID, the hostname from its config
drive, and that it is ready. It goes down when its power button is pressed.
"""

import asyncio
import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from sev_agent.lab.platform import efi, initramfs
from sev_agent.lab.service import LabError, Say
from sev_agent.subprocesses import ProgramError, ProgramFailed, ProgramMissing, run_bounded

PACKAGES = ("binutils", "mtools", "qemu-utils")
"""The Debian packages that a build needs on the machine, beside apt and dpkg."""

GUEST_MARK = "sev-agent-guest:"
"""What each line that the guest itself prints begins with; then a word (``uuid``, ``hostname``, ``ready``, ...)."""

_KERNEL = "linux-image-cloud-amd64"
_BUSYBOX = "busybox-static"
_EFI_STUB = "systemd-boot-efi"
_COMMAND_LINE = "console=ttyS0 loglevel=3 panic=1 mitigations=off random.trust_cpu=on"
_SIZE_MB = 40
_COMMAND_TIMEOUT = 300.0
# FAT counts from 1980; a fixed date makes the same packages give the same image.
_DATE = 946_684_800
_LAYOUT = "1"


class GuestImageError(LabError):
    """The guest image cannot be built."""

    code = "lab.guest_image"


@dataclass(frozen=True, slots=True, kw_only=True)
class Packages:
    """The names and versions from which a guest is built."""

    kernel: str
    versions: Mapping[str, str]

    @property
    def key(self) -> str:
        """What tells images of one recipe apart."""
        return _digest(f"{name}={version}" for name, version in sorted(self.versions.items()))


async def build_guest_image(cache: Path, progress: Say) -> Path:
    """The guest image in ``cache``, built unless one is there: qcow2, 13 MB, and 40 MB for the guest.

    Any image of today's recipe will do, of whatever packages: to ask apt costs seconds, and needs its lists. A build
    needs these, and the network for the packages that are not in the cache; the same packages give the same bytes.
    Raises ``GuestImageError``.
    """
    await asyncio.to_thread(cache.mkdir, parents=True, exist_ok=True)
    begin = f"sev-agent-guest-{_recipe()}-"
    if made := await asyncio.to_thread(lambda: sorted(cache.glob(f"{begin}*.qcow2"))):
        progress(f"{made[0].name} is there")
        return made[0]
    packages = await _resolve()
    image = cache / f"{begin}{packages.key}.qcow2"
    async with _scratch(cache) as scratch:
        root = scratch / "root"
        for name, version in packages.versions.items():
            progress(f"fetching {name} {version}")
            package = await _download(cache / "packages", name, version)
            await _run("dpkg-deb", "--extract", str(package), str(root))
        progress("packing kernel and initramfs")
        kernel = await asyncio.to_thread(_kernel_release, root)
        archive = await asyncio.to_thread(initramfs.build, root, kernel)
        uki = await _write_efi_file(scratch, root, kernel, archive)
        progress("writing the disk")
        disk = await _write_disk(scratch, uki)
        built = scratch / image.name
        await _run("qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", str(disk), str(built))
        await asyncio.to_thread(built.replace, image)
    return image


def _recipe() -> str:
    """How this project puts the packages together."""
    return _digest((_LAYOUT, _COMMAND_LINE, str(_SIZE_MB), initramfs.RECIPE))


def _digest(parts: Iterable[str]) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


async def _resolve() -> Packages:
    """The candidates of this machine's package sources; the kernel's own is named by the one that follows it."""
    depends = (await _fields(_KERNEL)).get("Depends", "")
    kernel = depends.split(",")[0].split("(")[0].strip()
    if not kernel.startswith("linux-image-"):
        raise GuestImageError(f"{_KERNEL} names no kernel: {depends!r}", remedy="apt-get update")
    names = (kernel, _BUSYBOX, _EFI_STUB)
    versions = {name: (await _fields(name)).get("Version", "") for name in names}
    return Packages(kernel=kernel, versions=versions)


async def _fields(name: str) -> dict[str, str]:
    output = await _run("apt-cache", "show", "--no-all-versions", name, remedy="apt-get update")
    lines = output.split("\n\n")[0].splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines if line[:1] != " ")}


async def _download(directory: Path, name: str, version: str) -> Path:
    await asyncio.to_thread(directory.mkdir, exist_ok=True)
    # apt writes the version's colons as %3a.
    path = directory / f"{name}_{version.replace(':', '%3a')}_amd64.deb"
    if not await asyncio.to_thread(path.exists):
        async with _scratch(directory) as scratch:
            options = ("-o", "APT::Sandbox::User=root")
            await _run("apt-get", *options, "download", f"{name}={version}", cwd=scratch, remedy="apt-get update")
            await asyncio.to_thread((scratch / path.name).replace, path)
    return path


def _kernel_release(root: Path) -> str:
    found = sorted(path.name for path in (root / "lib/modules").glob("*")) or sorted(
        path.name for path in (root / "usr/lib/modules").glob("*")
    )
    if len(found) != 1:
        raise GuestImageError(f"the kernel package holds {len(found)} kernels: {', '.join(found)}")
    return found[0]


async def _write_efi_file(scratch: Path, root: Path, kernel: str, archive: bytes) -> Path:
    """One file that the firmware can boot: systemd's stub with kernel, initramfs and command line as sections."""
    sections = {
        ".osrel": b"ID=sev-agent-guest\nNAME=sev-agent guest\n",
        ".cmdline": _COMMAND_LINE.encode() + b"\0",
        ".linux": await asyncio.to_thread((root / f"boot/vmlinuz-{kernel}").read_bytes),
        ".initrd": archive,
    }
    stub = root / "usr/lib/systemd/boot/efi/linuxx64.efi.stub"
    uki = scratch / "BOOTX64.EFI"
    await asyncio.to_thread(efi.write_sections, scratch, sections)
    position = efi.end_of_sections(await asyncio.to_thread(stub.read_bytes))
    options = efi.section_options(scratch, sections, position)
    await _run("objcopy", *options, str(stub), str(uki))
    await asyncio.to_thread(lambda: uki.write_bytes(efi.without_date(uki.read_bytes())))
    return uki


async def _write_disk(scratch: Path, uki: Path) -> Path:
    """A disk that is one FAT file system, from its first sector on: the firmware boots its removable path."""
    disk = scratch / "disk.raw"
    tree = scratch / "esp/EFI"
    await asyncio.to_thread(_arrange, uki, tree / "BOOT/BOOTX64.EFI")
    await asyncio.to_thread(_sparse, disk, _SIZE_MB << 20)
    image = ("-i", str(disk))
    sectors = str(_SIZE_MB * 2048)
    await _run("mformat", *image, "-T", sectors, "-h", "64", "-s", "32", "-N", "5e00a6e7", "-v", "SEVGUEST", "::")
    await _run("mcopy", *image, "-s", "-m", str(tree), "::/")
    return disk


def _arrange(file: Path, target: Path) -> None:
    """Move ``file`` to ``target``, both it and the directories above of a fixed date, which the copy keeps."""
    target.parent.mkdir(parents=True)
    file.rename(target)
    for path in (target, target.parent, target.parent.parent):
        os.utime(path, (_DATE, _DATE))


def _sparse(path: Path, size: int) -> None:
    with path.open("wb") as file:
        file.truncate(size)


@contextlib.asynccontextmanager
async def _scratch(directory: Path) -> AsyncIterator[Path]:
    """A directory on the same file system, gone in the end: what is finished is renamed out of it."""
    path = Path(await asyncio.to_thread(tempfile.mkdtemp, dir=directory, prefix=".building-"))
    try:
        yield path
    finally:
        await asyncio.to_thread(shutil.rmtree, path, ignore_errors=True)


async def _run(*command: str, cwd: Path | None = None, remedy: str | None = None) -> str:
    environment = {"LC_ALL": "C", "TZ": "UTC", "SOURCE_DATE_EPOCH": str(_DATE), "MTOOLS_SKIP_CHECK": "1"}
    try:
        ended = await run_bounded(command, timeout=_COMMAND_TIMEOUT, environment=environment, cwd=cwd)
    except ProgramMissing:
        raise GuestImageError(f"{command[0]} is missing", remedy=f"apt-get install {' '.join(PACKAGES)}") from None
    except ProgramFailed as error:
        text = error.stderr or error.stdout.decode(errors="replace").strip()
        raise GuestImageError(f"{' '.join(command[:3])} failed: {text[-500:]}", remedy=remedy) from None
    except ProgramError as error:
        raise GuestImageError(error.message, remedy=remedy) from None
    return ended.stdout.decode(errors="replace")
