"""The process that libvirt starts as QEMU: it leaves a stand at the monitor behind and becomes the real QEMU.

libvirt's pid, signals and exit status are then QEMU's own. The stand is a process beside it, which ends with it.
"""

import datetime as dt
import json
import os
import signal
import socket
import sys
from pathlib import Path
from typing import NoReturn

from . import firmware, launch, monitor
from .command_line import CommandLine, Launch, Monitor, rewrite
from .failures import Armed, LaunchError, Stage
from .kind import Kind
from .slots import NoSlotError, Slots

_PROGRAM = "qemu-system-x86_64"
_NICENESS = 10
"""A guest without KVM computes all the time: the lab's services, and whoever tries them out, must not wait for it."""

_NOTE = "SEV is simulated by the lab: memory is not encrypted, keys and measurements are made up"


class Shim:
    """What stands between libvirt and QEMU on one host; ``directory`` holds ``settings.json``."""

    def __init__(self, directory: str) -> None:
        settings = json.loads((Path(directory) / "settings.json").read_text())
        self._identity = bytes.fromhex(settings["identity"])
        self._kind = Kind(settings["kind"])
        self._slots = Slots(Path(settings["slots"]), settings["capacity"], Path(settings["misc"]))
        self._armed = Armed(Path(settings["failures"]))
        self._monitors = Path(settings["monitors"])
        self._emulator: str = settings["emulator"]
        self._data: list[str] = settings["data"]
        self._environment: dict[str, str] = settings["environment"]

    def run(self, arguments: list[str]) -> NoReturn:
        """Become QEMU with ``arguments``; fail as QEMU fails where the firmware refuses the launch."""
        path = self._monitors / f"{os.getpid()}.sock"
        listening = _listen(path)
        line = rewrite(arguments, listening.fileno())
        if line.monitor is None:
            path.unlink()
            self._become_qemu(arguments)
        try:
            platform, slot = self._launch(line.launch)
        except LaunchError as error:
            path.unlink()
            _say(_NOTE)
            _tell(error, line)
            sys.exit(1)
        client = _client_socket(line.monitor)
        life, held = _life(line)
        if _fork_stand():
            self._serve(client, path, platform, life, line)
        client.close()
        for descriptor in (listening.fileno(), held, slot):
            if descriptor is not None:
                os.set_inheritable(descriptor, True)  # noqa: FBT003 - it takes no name
        if line.launch is not None:
            os.nice(_NICENESS)
        self._become_qemu(line.arguments)

    def _launch(self, wanted: Launch | None) -> tuple[firmware.Platform, int | None]:
        """Take a slot for the guest, if it is one. Raises ``LaunchError``."""
        if wanted is None:
            return firmware.host(self._identity, self._kind), None
        launch.check_host(wanted, self._kind)
        failure = self._armed.take()
        late = None
        if failure is not None:
            late = failure.error(snp=wanted.is_snp)
            if failure.stage_for(snp=wanted.is_snp) is not Stage.FINISH:
                raise late
        generation = launch.generation(wanted)
        guest = {"pid": os.getpid(), "name": wanted.name, "uuid": wanted.uuid, "policy": wanted.policy}
        try:
            slot, handle = self._slots.take(generation.pool, guest)
        except NoSlotError:
            raise launch.no_slot() from None
        try:
            launch.check_guest(wanted, self._kind)
        except LaunchError:
            os.close(slot)
            self._slots.show()
            raise
        _say(f"{_NOTE} ({generation.title}, policy {wanted.policy:#x}, handle {handle})")
        return firmware.guest(self._identity, wanted, handle, late=late), slot

    def _serve(
        self, client: socket.socket, path: Path, platform: firmware.Platform, life: int, line: CommandLine
    ) -> NoReturn:
        # Nothing else that libvirt or QEMU passed on may stay open here: the readers of its pipes wait for their end.
        # Only a guest's log is kept; where libvirt probes, it waits for the end of that one too.
        launched = line.launch is not None
        _keep_only({client.fileno(), life, *([2] if launched else [])})
        status = 1
        try:
            try:
                monitor.serve(client, lambda: _connect(path), platform, life)
            except LaunchError as error:
                _tell(error, line)
                # Its exit status is not QEMU's then, and nobody asks for it.
                signal.pidfd_send_signal(life, signal.SIGKILL)
                monitor.wait(life)
            path.unlink()
            if launched:
                self._slots.show()
            status = 0
        except Exception:  # noqa: BLE001 - a fork must not return into its parent's code
            sys.excepthook(*sys.exc_info())
            sys.stderr.flush()
        os._exit(status)

    def _become_qemu(self, arguments: list[str]) -> NoReturn:
        """Replace this process. QEMU looks for its data and modules by its own path, which is another one here."""
        data = [part for directory in self._data for part in ("-L", directory)]
        program = [f"/usr/bin/{_PROGRAM}", *data, *arguments]
        os.execve(self._emulator, program, {**os.environ, **self._environment})  # noqa: S606 - no shell is wanted


def _listen(path: Path) -> socket.socket:
    """A socket at ``path`` for QEMU to listen at. The way over /proc keeps its address short wherever the lab lives."""
    path.unlink(missing_ok=True)
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listening.bind(f"/proc/self/fd/{directory}/{path.name}")
    listening.listen(1)
    os.close(directory)
    return listening


def _connect(path: Path) -> socket.socket:
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    qemu = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        qemu.connect(f"/proc/self/fd/{directory}/{path.name}")
    except OSError:
        qemu.close()
        raise
    finally:
        os.close(directory)
    return qemu


def _client_socket(wanted: Monitor) -> socket.socket:
    """Where libvirt connects: the listening descriptor that it passed, or, when it probes, the path that it named."""
    if wanted.descriptor is not None:
        return socket.socket(fileno=wanted.descriptor)
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    client.bind(wanted.path)
    client.listen(1)
    return client


def _life(line: CommandLine) -> tuple[int, int | None]:
    """A descriptor that becomes ready when QEMU ends, and the one that QEMU must inherit for it.

    A guest's QEMU is this very process; it is watched as a process, since its slot is surely free only when all of it
    is gone. A QEMU that daemonizes goes on as another process, known by the pipe that it inherits.
    """
    if "-daemonize" in line.arguments:
        return os.pipe()
    return os.pidfd_open(os.getpid()), None


def _fork_stand() -> bool:
    """Fork twice, so that QEMU has no child that it does not know of. True in the process that is to stand."""
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return False
    if os.fork():
        os._exit(0)
    os.setsid()
    return True


def _keep_only(kept: set[int]) -> None:
    for number in [int(entry.name) for entry in Path("/proc/self/fd").iterdir()]:
        if number > 2 and number not in kept:
            try:
                os.close(number)
            except OSError:
                continue
    null = os.open(os.devnull, os.O_RDWR)
    for number in {0, 1, 2} - kept:
        os.dup2(null, number)
    os.close(null)


def _tell(error: LaunchError, line: CommandLine) -> None:
    """Write what QEMU would, in its form: with the time where it was told so."""
    stamped = ("-msg", "timestamp=on") in zip(line.arguments, line.arguments[1:], strict=False)
    for text in error.args:
        now = dt.datetime.now(dt.UTC).isoformat().replace("+00:00", "Z ") if stamped else ""
        sys.stderr.write(f"{now}{_PROGRAM}: {text}\n")
    sys.stderr.flush()


def _say(text: str) -> None:
    sys.stderr.write(f"sev-agent lab: {text}\n")
    sys.stderr.flush()
