"""A libvirtd of the tests' own, to be killed and frozen."""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

_NOBODY = 65534


class PrivateLibvirtd:
    """An unprivileged libvirtd with every file below ``directory``, reached through its own socket.

    It speaks libvirt's real RPC. Behind ``uri`` is libvirt's test driver, whose domains live while somebody is
    connected; behind ``qemu_uri`` the real QEMU.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = _NOBODY if os.geteuid() == 0 else None  # as root it would use the machine's own directories
        for name in ("run", "config", "cache", "data"):
            (directory / name).mkdir()
        configuration = f'unix_sock_dir = "{directory}/run"\nlog_outputs = "3:file:{directory}/run/log"\n'
        (directory / "libvirtd.conf").write_text(configuration)
        if self._owner is not None:
            for path in (directory, *directory.iterdir()):
                os.chown(path, self._owner, self._owner)

    @property
    def uri(self) -> str:
        return f"test+unix:///default?socket={self._directory}/run/libvirt-sock"

    @property
    def qemu_uri(self) -> str:
        return f"qemu+unix:///session?socket={self._directory}/run/libvirt-sock"

    def start(self) -> None:
        program = shutil.which("libvirtd", path=os.defpath + ":/usr/sbin:/sbin")
        assert program, "libvirtd is not installed"
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self._directory),
            **{f"XDG_{kind}_HOME": str(self._directory / kind.lower()) for kind in ("CONFIG", "CACHE", "DATA")},
            "XDG_RUNTIME_DIR": str(self._directory / "run"),
        }
        self._process = subprocess.Popen(
            [
                program,
                "--config",
                str(self._directory / "libvirtd.conf"),
                "--pid-file",
                str(self._directory / "run/pid"),
            ],
            env=environment,
            user=self._owner,
            group=self._owner,
            extra_groups=None if self._owner is None else [],
        )

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        self._process = None

    def freeze(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def end(self) -> None:
        """End it, and the guests that a failed test may have left: they outlive their libvirtd."""
        if self._process is not None:
            self.kill()
        for pid in self.guest_pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def guest_pids(self) -> list[int]:
        files = (self._directory / "run/libvirt/qemu/run").glob("*.pid")
        return [int(file.read_text()) for file in files if file.name != "driver.pid"]  # that one is libvirtd's own


@contextlib.contextmanager
def _running() -> Iterator[PrivateLibvirtd]:
    # pytest's own directories are closed to the user that it runs as, and too long for a socket's path.
    with tempfile.TemporaryDirectory(prefix="libvirtd-") as directory:
        daemon = PrivateLibvirtd(Path(directory))
        daemon.start()
        try:
            yield daemon
        finally:
            daemon.end()


@pytest.fixture
def libvirtd() -> Iterator[PrivateLibvirtd]:
    """One that the test may kill and freeze."""
    with _running() as daemon:
        yield daemon


@pytest.fixture(scope="module")
def shared_libvirtd() -> Iterator[PrivateLibvirtd]:
    """One for all tests of a module: it has looked at QEMU once, which takes seconds."""
    with _running() as daemon:
        yield daemon
