"""A host captured: all that the checks look at, below a directory, in the form in which they read it there.

Nothing secret is taken along: of ``grub.cfg`` only the lines that start kernels, of users and groups only those who may
open the devices. Firmware itself is not copied, only that it is there.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from sev_agent.errors import Conflict, SevAgentError
from sev_agent.host import boot_line, cpuinfo, kernel, modprobe, registers
from sev_agent.host.checks.firmware_descriptors import DIRECTORIES as FIRMWARE
from sev_agent.host.checks.limits_memlock import find_daemon
from sev_agent.host.inquiry import CAPABILITIES, NO_CAPABILITIES, VERSIONS
from sev_agent.hypervisor.capabilities import DomainCapabilities
from sev_agent.hypervisor.host_files import HostFiles, Node
from sev_agent.hypervisor.secure_processor import DEVICE, Command, Status, platform_status

_FILES: Final = (
    boot_line.IN_EFFECT,
    kernel.RELEASE,
    "proc/meminfo",
    "etc/os-release",
    "etc/default/grub",
    "etc/kernel/cmdline",
    "sys/module/kvm/parameters/mmio_caching",
    "sys/fs/cgroup/misc.capacity",
    "sys/fs/cgroup/misc.current",
    "sys/fs/cgroup/misc/misc.capacity",
    "sys/fs/cgroup/misc/misc.current",
    "sys/fs/cgroup/machine.slice/memory.max",
    "SIMULATED",
    CAPABILITIES,
    VERSIONS,
)
_DIRECTORIES: Final = (
    "etc/default/grub.d",
    "sys/module/kvm_amd/parameters",
    *boot_line.ENTRY_DIRECTORIES,
    *modprobe.DIRECTORIES,
    *FIRMWARE,
)
_NODES: Final = ("dev/kvm", DEVICE)
_MAX_GROUPS = 1

_BOOT_LINES = re.compile(r"^\s*(?:linux(?:efi|16)?\s.*|blscfg.*)$", re.MULTILINE)
_FILENAME = re.compile(r'"filename"\s*:\s*"/([^"\0]{1,500})"')


class CaptureRefused(Conflict):
    """The directory holds something already."""

    code = "capture.refused"


def capture(files: HostFiles, libvirt: DomainCapabilities | SevAgentError | None, target: Path) -> int:
    """Write what the checks look at below ``target``, which is made; give back how many files that are.

    ``libvirt`` is its answer, or why there is none; None leaves it out, but for what ``files`` have captured of it.
    What is absent or may not be read is left out. Blocks on the disk. Raises ``CaptureRefused`` and ``OSError``.
    """
    target.mkdir(parents=True, exist_ok=True)
    if any(target.iterdir()):
        raise CaptureRefused(f"{target} is not empty", remedy="name a new directory")
    found = dict(_texts(files))
    match libvirt:
        case DomainCapabilities(xml=xml, libvirt_version=version, emulator_version=emulator):
            found[CAPABILITIES] = xml
            found[VERSIONS] = f"Using library: libvirt {version}\nRunning hypervisor: QEMU {emulator}\n"
        case SevAgentError(message=message):
            found[CAPABILITIES] = f"{NO_CAPABILITIES}{message}\n"
        case None:
            pass
    for name, text in found.items():
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for name in _NODES:
        if name in found and (node := _node(files, name)) is not None:
            (target / name).chmod(node.mode)
    return len(found)


def _texts(files: HostFiles) -> Iterator[tuple[str, str]]:
    plain = [*_FILES, *(f"{directory}/{name}" for directory in _DIRECTORIES for name in files.names(directory))]
    daemon = find_daemon(files)
    if daemon is not None:
        plain += [f"proc/{daemon.pid}/{part}" for part in ("comm", "limits", "status")]
    for path in plain:
        if (text := _text(files, path)) is not None:
            yield path, text
    yield from _kernel(files)
    yield from _devices(files)
    yield from _accounts(files)
    for group in files.names("sys/kernel/iommu_groups")[:_MAX_GROUPS]:
        yield f"sys/kernel/iommu_groups/{group}/type", ""
    for path in plain:
        if path.startswith(FIRMWARE):
            for name in _FILENAME.findall(_text(files, path) or ""):
                if files.exists(name):
                    yield name, ""


def _kernel(files: HostFiles) -> Iterator[tuple[str, str]]:
    if (text := _text(files, cpuinfo.PATH)) is not None:
        yield cpuinfo.PATH, text.partition("\n\n")[0] + "\n"
    for path in boot_line.GRUB_FILES:
        if (text := _text(files, path)) is not None:
            yield path, "".join(f"{line}\n" for line in _BOOT_LINES.findall(text))
    try:
        config, release = kernel.config(files), kernel.release(files)
    except OSError:
        return
    if config is not None:
        lines = (
            f"# {name} is not set" if value == "n" else f"{name}={value}" for name, value in config.options.items()
        )
        yield f"boot/config-{release}", "\n".join(lines) + "\n"


def _devices(files: HostFiles) -> Iterator[tuple[str, str]]:
    leaf_number = registers.MEMORY_ENCRYPTION_LEAF
    try:
        leaf = registers.leaf_values(files, leaf_number)
    except OSError:
        pass
    else:
        values = zip(("eax", "ebx", "ecx", "edx"), leaf or (), strict=False)
        text = " ".join(f"{name}={value:#010x}" for name, value in values)
        yield registers.CPUID, f"   {leaf_number:#010x} 0x00: {text}\n" if leaf else ""
    try:
        numbers = {number: registers.model_register(files, number) for number in registers.MODEL_REGISTERS}
    except OSError:
        pass
    else:
        yield registers.MSR, "".join(f"{n:#010x} {v:#018x}\n" for n, v in numbers.items() if v is not None)
    if files.exists("dev/kvm"):
        yield "dev/kvm", ""
    if files.exists(DEVICE):
        sections = {"sev": Command.SEV_PLATFORM_STATUS, "snp": Command.SNP_PLATFORM_STATUS}
        yield DEVICE, "\n".join(f"[{name}]\n{_answer(files, command)}" for name, command in sections.items())


def _answer(files: HostFiles, command: Command) -> str:
    try:
        status = platform_status(files, command)
    except OSError as error:
        return f"error = '{(error.strerror or str(error)).replace(chr(39), ' ')}'\n"
    return "".join(f"{name} = {getattr(status, name)}\n" for name in Status.__dataclass_fields__)


def _accounts(files: HostFiles) -> Iterator[tuple[str, str]]:
    nodes = [node for name in _NODES if (node := _node(files, name)) is not None]
    wanted = {"etc/passwd": {node.uid for node in nodes}, "etc/group": {node.gid for node in nodes}}
    for path, numbers in wanted.items():
        lines = (_text(files, path) or "").splitlines()
        kept = [line for line in lines if [*line.split(":"), "", "", ""][2] in map(str, numbers)]
        if kept:
            yield path, "".join(f"{line}\n" for line in kept)


def _node(files: HostFiles, path: str) -> Node | None:
    try:
        return files.node(path)
    except OSError:
        return None


def _text(files: HostFiles, path: str) -> str | None:
    try:
        return files.text_or_none(path)
    except OSError:
        return None
