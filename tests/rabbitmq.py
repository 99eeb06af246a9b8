"""A RabbitMQ node of the tests' own: the lab's, on free ports, in a directory of its own, nothing left behind."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sev_agent.lab import rabbitmq as lab

_PASSWORD = "tests"


@dataclass(frozen=True, slots=True, kw_only=True)
class RabbitNode:
    """A running node. ``environment`` is what its command line tools need."""

    port: int
    pid: int
    environment: dict[str, str]

    @property
    def url(self) -> str:
        return f"amqp://{lab.USER}:{_PASSWORD}@127.0.0.1:{self.port}/"

    def ctl(self, *arguments: str) -> str:
        """Run ``rabbitmqctl`` against this node (about a second, blocking) and return what it printed."""
        done = subprocess.run(
            ["/usr/lib/rabbitmq/bin/rabbitmqctl", "--quiet", *arguments],
            env=self.environment,
            check=True,
            capture_output=True,
            text=True,
            timeout=60,
        )
        return done.stdout

    def freeze(self) -> None:
        """Make the node hang, as a stuck machine does."""
        os.killpg(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.killpg(self.pid, signal.SIGCONT)


def free_port() -> int:
    """A TCP port on 127.0.0.1 that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def rabbitmq(directory: Path) -> Iterator[RabbitNode]:
    """Start a node with its port mapper in ``directory``, and end both. Blocks for some seconds."""
    ports = {name: free_port() for name in lab.PORT_NAMES}
    lab.prepare(directory, ports, _PASSWORD)
    epmd, node = lab.services(directory, ports)
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", **node.environment}
    with _process(epmd.command, directory, environment):
        _wait_for_port(ports["rabbitmq-epmd"], directory, seconds=10)
        with _process(node.command, directory, environment) as pid:
            _wait_for_port(ports["rabbitmq"], directory, seconds=90)
            running = RabbitNode(port=ports["rabbitmq"], pid=pid, environment=environment)
            running.ctl("await_startup", "--timeout", "60")
            yield running


@contextmanager
def _process(command: tuple[str, ...], directory: Path, environment: dict[str, str]) -> Iterator[int]:
    with (directory / "output.log").open("ab") as output:
        process = subprocess.Popen(
            command, env=environment, stdout=output, stderr=output, stdin=subprocess.DEVNULL, start_new_session=True
        )
    try:
        yield process.pid
    finally:
        os.killpg(process.pid, signal.SIGCONT)
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)


def _wait_for_port(port: int, directory: Path, *, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            if time.monotonic() > deadline:
                last = (directory / "output.log").read_text(errors="replace")[-4000:]
                raise TimeoutError(f"nothing listens on port {port}:\n{last}") from None
            time.sleep(0.05)
        else:
            return
