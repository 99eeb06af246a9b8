"""A PostgreSQL server of the tests' own, on a UNIX socket and a free port of loopback, nothing left behind."""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from tests.rabbitmq import free_port

_VERSIONS = Path("/usr/lib/postgresql")
_SETTINGS = {
    # The data need not survive a loss of power.
    "fsync": "off",
    "full_page_writes": "off",
    "max_connections": "60",
    "listen_addresses": "127.0.0.1",
    "shared_buffers": "16MB",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PostgresServer:
    """A running server."""

    binaries: Path
    port: int
    pid: int
    user: str

    def new_database(self) -> str:
        """The URL of an empty database of its own."""
        name = f"test_{uuid4().hex[:12]}"
        subprocess.run(
            _as(self.user, str(self.binaries / "createdb"), *self._where, name),
            check=True,
            capture_output=True,
            cwd="/",
            timeout=60,
        )
        return f"postgresql://{self.user}@127.0.0.1:{self.port}/{name}"

    def freeze(self) -> None:
        """Make the server hang, as a stuck machine does: it accepts connections, and answers none."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        # Each of its processes is a group of its own.
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        for pid in (self.pid, *map(int, children)):
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    @property
    def _where(self) -> tuple[str, ...]:
        return ("--host", "127.0.0.1", "--port", str(self.port), "--username", self.user)


@contextmanager
def postgresql() -> Iterator[PostgresServer]:
    """Make a cluster and run it, as an unprivileged user: PostgreSQL refuses root. Blocks for some seconds."""
    binaries = max(_VERSIONS.glob("*/bin"), key=lambda path: int(path.parent.name))
    user = "postgres" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
    home = Path(tempfile.mkdtemp(prefix="sev-pg-", dir="/tmp"))
    try:
        if os.geteuid() == 0:
            shutil.chown(home, user)
        data, port = home / "data", free_port()
        initdb = (str(binaries / "initdb"), "--auth=trust", "--no-sync", "--locale=C.UTF-8", "--username", user)
        subprocess.run(_as(user, *initdb, str(data)), check=True, capture_output=True, cwd="/", timeout=120)
        options = {**_SETTINGS, "port": str(port), "unix_socket_directories": str(home)}
        arguments = [argument for name, value in options.items() for argument in ("-c", f"{name}={value}")]
        with (home / "log").open("wb") as output:
            process = subprocess.Popen(
                _as(user, str(binaries / "postgres"), "-D", str(data), *arguments),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd="/",
                start_new_session=True,
            )
        server = PostgresServer(binaries=binaries, port=port, pid=process.pid, user=user)
        try:
            _wait(server, home / "log")
            yield server
        finally:
            server.thaw()
            # "Fast": sessions that a test left open are ended.
            process.send_signal(signal.SIGINT)
            process.wait(30)
    finally:
        shutil.rmtree(home)


def _as(user: str, *command: str) -> list[str]:
    if os.geteuid() != 0:
        return list(command)
    return ["/usr/bin/setpriv", "--reuid", user, "--regid", user, "--init-groups", *command]


def _wait(server: PostgresServer, log: Path) -> None:
    asked = _as(server.user, str(server.binaries / "pg_isready"), "--quiet", *server._where[:4])
    deadline = time.monotonic() + 60
    while subprocess.run(asked, check=False, cwd="/", timeout=30).returncode != 0:
        if time.monotonic() > deadline:
            raise TimeoutError(f"PostgreSQL is not ready:\n{log.read_text(errors='replace')[-4000:]}")
        time.sleep(0.05)
