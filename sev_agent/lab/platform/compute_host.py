"""A compute host of the lab: a real libvirtd in namespaces of its own, over a simulated SEV platform."""

import asyncio
import compileall
import contextlib
import hashlib
import json
import os
import shlex
import shutil
import sys
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sev_agent.lab.platform import emulator, memlock
from sev_agent.lab.platform.emulator.failures import Armed
from sev_agent.lab.platform.emulator.kind import Kind
from sev_agent.lab.platform.emulator.slots import Slots
from sev_agent.lab.platform.firmware_descriptors import write_descriptors
from sev_agent.lab.platform.namespace import EMULATOR, enter_script, holder_script
from sev_agent.lab.platform.simulated_root import MISC_DIRECTORY, write_platform_root
from sev_agent.lab.service import LabError, Service

_SOCKET_LIMIT = 107
_BOUND = {
    Path("/run/libvirt"): "run",
    Path("/var/lib/libvirt"): "lib",
    Path("/var/cache/libvirt"): "cache",
    Path("/var/log/libvirt"): "log",
    Path("/etc/libvirt"): "etc/libvirt",
}
_DATA = ("/usr/share/qemu", "/usr/share/seabios", "/usr/lib/ipxe/qemu")
_MODULES = "/usr/lib/x86_64-linux-gnu/qemu"

_QEMU_CONF = """\
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
namespaces = []
cgroup_controllers = []
stdio_handler = "logd"
"""
_LIBVIRTD_CONF = """\
auth_unix_ro = "none"
auth_unix_rw = "none"
unix_sock_ro_perms = "0700"
unix_sock_rw_perms = "0700"
host_uuid = "{uuid}"
log_level = 3
log_outputs = "3:stderr"
"""
_VIRTLOGD_CONF = """\
log_level = 3
log_outputs = "3:stderr"
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ComputeHost:
    """Host ``name``, all of whose files are below ``directory``, with room for ``slots`` encrypted guests in each pool.

    ``directory`` is absolute. ``kind`` says which generations it runs, and so which pools it has.
    """

    name: str
    directory: Path
    slots: int = 15
    kind: Kind = Kind.SEV

    @property
    def virt_type(self) -> Literal["kvm", "qemu"]:
        """Guests run by emulation: a simulated platform has nothing that KVM could use."""
        return "qemu"

    @property
    def platform(self) -> str:
        """What is simulated, by its name on the command line."""
        return self.kind.value

    @property
    def uri(self) -> str:
        """Address for libvirt clients of this host, for use outside its namespaces."""
        return f"qemu+unix:///system?socket={self._socket('libvirt-sock')}"

    @property
    def platform_root(self) -> Path:
        """The root below which ``sys``, ``proc`` and ``dev`` of a SEV host are found."""
        return self.directory / "platform"

    @property
    def firmware_slots(self) -> Slots:
        """The slots of this host's simulated firmware; its methods block shortly."""
        return Slots(self.directory / "slots", self._capacity, self.platform_root / MISC_DIRECTORY)

    @property
    def failures(self) -> Armed:
        """What launches on this host are to fail with; its methods block shortly."""
        return Armed(self.directory / "failures")

    @property
    def firmware_descriptors(self) -> Path:
        """The directory of QEMU firmware descriptors that the machine's own lack."""
        return self.directory / "firmware"

    async def prepare(self) -> None:
        """Write everything that the services need; harmless while they run.

        Raises ``LabError`` when the lab's directory is too deep for a socket's address, or a tool is missing.
        """
        if len(os.fsencode(self._socket("libvirt-admin-sock"))) > _SOCKET_LIMIT:
            raise LabError(
                f"the directory of host {self.name} is too deep for a socket: {self.directory}",
                remedy="choose a lab directory with a shorter path",
            )
        await asyncio.to_thread(self._write)

    async def cleanup(self) -> None:
        """Remove what a machine forgets when it restarts; domains, images and logs stay. Only when no service runs."""
        await asyncio.to_thread(self._remove)

    def services(self, mark_environment: Mapping[str, str]) -> tuple[Service, ...]:
        """The holder of the namespaces, virtlogd and libvirtd, in the order of their start.

        ``mark_environment`` is given to every guest.
        """
        enter = ("/bin/sh", str(self.directory / "bin/enter"))
        etc = "/etc/libvirt"
        limit = () if memlock.may_raise_limits() else (f"LD_PRELOAD={self._limit_library}",)
        unshare = ("unshare", "--mount", "--uts", "--propagation", "private")
        holder = (*unshare, "/bin/sh", str(self.directory / "bin/hold"))
        exports = (f"export {name}={shlex.quote(value)}" for name, value in mark_environment.items())
        return (
            self._service("namespace", (*holder, *exports), self._namespace_ready),
            self._service(
                "virtlogd",
                (*enter, "virtlogd", "--config", f"{etc}/virtlogd.conf", "--pid-file", "/run/libvirt/virtlogd.pid"),
                self._virtlogd_ready,
            ),
            self._service(
                "libvirtd",
                (
                    # libvirt waits until the guest that it ends has left the process table, so somebody must collect it
                    # at once. The machine's first process may take its time, and in a container may never do it.
                    *("tini", "-s", "--", *enter, "env", *limit),
                    *("libvirtd", "--config", f"{etc}/libvirtd.conf", "--pid-file", "/run/libvirt/libvirtd.pid"),
                ),
                self._libvirtd_ready,
                address=self.uri,
            ),
        )

    def _write(self) -> None:
        for name in (*_BOUND.values(), "bin", "dev", "real", "shim", "slots", "monitors"):
            (self.directory / name).mkdir(parents=True, exist_ok=True)
        (self.directory / "real" / EMULATOR.name).touch()
        self._write_configuration()
        self._write_scripts()
        self._write_emulator()
        if not memlock.may_raise_limits():
            memlock.compile_library(self._limit_library)
        write_platform_root(self.platform_root, self.kind)
        write_descriptors(self.firmware_descriptors, self.kind)
        self.firmware_slots.show()

    def _remove(self) -> None:
        for name in ("run", "dev", "real", "monitors", "slots", "failures"):
            shutil.rmtree(self.directory / name, ignore_errors=True)
        (self.directory / "namespace.pid").unlink(missing_ok=True)

    @property
    def _identity(self) -> bytes:
        """What makes this host another machine than every other, the same at every start."""
        return hashlib.sha256(os.fsencode(self.directory.resolve())).digest()

    @property
    def _capacity(self) -> dict[str, int]:
        return self.kind.capacity(self.slots)

    @property
    def _limit_library(self) -> Path:
        return self.directory / "shim/memlock.so"

    def _socket(self, name: str) -> Path:
        return self.directory / "run" / name

    def _service(
        self,
        part: str,
        command: tuple[str, ...],
        ready: Callable[[], Awaitable[bool]],
        *,
        kind: str = "",
        address: str = "",
    ) -> Service:
        return Service(
            name=f"{self.name}-{part}",
            kind=kind or part,
            command=command,
            ready=ready,
            address=address,
            platform=self.platform,
            ready_timeout=60,
        )

    def _write_configuration(self) -> None:
        etc = self.directory / "etc"
        _replace(etc / "libvirt/qemu.conf", _QEMU_CONF)
        _replace(
            etc / "libvirt/libvirtd.conf", _LIBVIRTD_CONF.format(uuid=uuid.UUID(bytes=self._identity[:16], version=5))
        )
        _replace(etc / "libvirt/virtlogd.conf", _VIRTLOGD_CONF)
        _replace(etc / "hosts", f"127.0.0.1 localhost\n127.0.1.1 {self.name}\n::1 localhost ip6-localhost\n")

    def _write_scripts(self) -> None:
        bound = {target: self.directory / source for target, source in _BOUND.items()}
        hold = holder_script(
            name=self.name,
            directories=bound,
            emulator=self._wrapper,
            host=self.directory,
            sev=self.kind is not Kind.NONE,
        )
        _replace(self.directory / "bin/hold", hold)
        _replace(self.directory / "bin/enter", enter_script(self.directory))

    @property
    def _wrapper(self) -> Path:
        return self.directory / "bin" / EMULATOR.name

    def _write_emulator(self) -> None:
        """The shim below the host, so that running guests do not depend on the project's files."""
        shim = self.directory / "shim"
        (shim / "emulator").mkdir(exist_ok=True)
        for module in Path(emulator.__file__).parent.glob("*.py"):
            _replace(shim / "emulator" / module.name, module.read_text())
        # libvirt probes as another user, who should have nothing to write here.
        compileall.compile_dir(shim / "emulator", quiet=2)
        settings = {
            "identity": self._identity.hex(),
            "kind": self.kind.value,
            "capacity": self._capacity,
            "failures": str(self.directory / "failures"),
            "slots": str(self.directory / "slots"),
            "misc": str(self.platform_root / MISC_DIRECTORY),
            "monitors": str(self.directory / "monitors"),
            "emulator": str(self.directory / "real" / EMULATOR.name),
            "data": _DATA,
            "environment": {"QEMU_MODULE_DIR": _MODULES},
        }
        _replace(shim / "settings.json", json.dumps(settings, indent=2))
        main = "import sys\nsys.path.insert(0, sys.argv[1])\nfrom emulator.shim import Shim\n"
        _replace(shim / "main.py", main + "Shim(sys.argv[1]).run(sys.argv[2:])\n")
        python = shlex.quote(str(Path(sys.executable).resolve()))
        # The guests' mark must be in the environment with which the process begins: /proc shows no other.
        command = f". {_q(shim / 'environment')}\nexec {python} -I -S {_q(shim / 'main.py')} {_q(shim)}"
        _replace(self._wrapper, f'#!/bin/sh\n{command} "$@"\n', mode=0o755)

    async def _namespace_ready(self) -> bool:
        return await asyncio.to_thread(self._namespace_alive)

    def _namespace_alive(self) -> bool:
        """Whether the pid in the file is the holder, who works here; the file may be older than the boot."""
        try:
            pid = int((self.directory / "namespace.pid").read_text())
            return (
                Path(f"/proc/{pid}/cwd").samefile(self.directory) and Path(f"/proc/{pid}/comm").read_text() == "sleep\n"
            )
        except (OSError, ValueError):
            return False

    async def _virtlogd_ready(self) -> bool:
        _, writer = await asyncio.open_unix_connection(self._socket("virtlogd-sock"))
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        return True

    async def _libvirtd_ready(self) -> bool:
        """Whether libvirtd answers, has probed the emulator and, where there is SEV, found it."""
        process = await asyncio.create_subprocess_exec(
            *("virsh", "--connect", self.uri, "domcapabilities", "--virttype", "qemu", "--machine", "q35"),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            output, _ = await process.communicate()
        except asyncio.CancelledError:
            process.kill()
            await process.wait()
            raise
        return (b"<domainCapabilities>" if self.kind is Kind.NONE else b"<sev supported='yes'>") in output


def _replace(path: Path, content: str, *, mode: int = 0o644) -> None:
    """Make ``path`` hold ``content``, at once and only if it does not: a guest may be starting from it right now."""
    if path.exists() and path.read_text() == content:
        return
    new = path.with_name(f".{path.name}.new")
    new.write_text(content)
    new.chmod(mode)
    new.replace(path)


def _q(path: Path) -> str:
    return shlex.quote(str(path))
