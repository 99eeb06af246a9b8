import json
import os
import select
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sev_agent.lab.platform.emulator import monitor
from sev_agent.lab.platform.emulator.command_line import Launch
from sev_agent.lab.platform.emulator.firmware import SevGuest
from tests.unit.lab.platform.fake_qemu import GREETING, LARGE, NOT_NEGOTIATED, PATIENCE, FakeQemu

LAUNCH = Launch(kind="sev-guest", policy=0x33, firmware="", name="guest", uuid="")


class Client:
    """libvirt's side of a monitor."""

    def __init__(self, path: Path) -> None:
        self.connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.connection.settimeout(PATIENCE)
        self.connection.connect(str(path))
        self._file = self.connection.makefile("rb")

    def send(self, command: str, **more: object) -> None:
        self.connection.sendall(json.dumps({"execute": command, **more}).encode() + b"\r\n")

    def line(self) -> bytes:
        return self._file.readline()

    def reply(self) -> dict[str, Any]:
        decoded: dict[str, Any] = json.loads(self.line())
        return decoded

    def negotiate(self) -> None:
        assert self.line() == GREETING
        self.send("qmp_capabilities", id="n")
        assert self.reply() == {"return": {}, "id": "n"}

    def close(self) -> None:
        self._file.close()
        self.connection.close()


class Stand:
    """The monitor's stand between ``client()`` and ``qemu``, in a thread of its own."""

    def __init__(self, directory: Path) -> None:
        self.qemu = FakeQemu(directory / "qemu.sock")
        self._path = directory / "libvirt.sock"
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(self._path))
        self._listener.listen(1)
        life, self._qemu_life = os.pipe()
        self._life = life
        arguments = (self._listener, self.qemu.connect, SevGuest(b"host", LAUNCH, 7), life)
        self.thread = threading.Thread(target=monitor.serve, args=arguments, name="stand", daemon=True)
        self.thread.start()

    def client(self) -> Client:
        return Client(self._path)

    def tell_end(self) -> None:
        os.close(self._qemu_life)

    def end_qemu(self) -> None:
        self.qemu.end()
        self.tell_end()
        self.join()

    def join(self) -> None:
        self.thread.join(PATIENCE)
        os.close(self._life)
        self._listener.close()


@pytest.fixture
def stand(tmp_path: Path) -> Iterator[Stand]:
    stand = Stand(tmp_path)
    yield stand
    if stand.thread.is_alive():
        stand.end_qemu()
    assert not stand.thread.is_alive()


@pytest.fixture
def newcomer(stand: Stand) -> Iterator[Client]:
    """A client that has not negotiated."""
    client = stand.client()
    yield client
    client.close()


@pytest.fixture
def client(newcomer: Client) -> Client:
    newcomer.negotiate()
    return newcomer


def test_answers_for_the_firmware(client: Client) -> None:
    """A question about SEV gets the firmware's answer, under the asker's own id."""
    client.send("query-sev", id="libvirt-9")
    reply = client.reply()
    assert reply["id"] == "libvirt-9"
    assert (reply["return"]["enabled"], reply["return"]["policy"], reply["return"]["handle"]) == (True, 0x33, 7)


def test_passes_a_refusal_of_qemu(newcomer: Client) -> None:
    """Before the negotiation a question about SEV gets what QEMU says to every command then."""
    assert newcomer.line() == GREETING
    newcomer.send("query-sev", id="early")
    assert newcomer.reply() == {"error": NOT_NEGOTIATED, "id": "early"}


def test_keeps_the_order_of_replies(client: Client) -> None:
    """Of commands sent together, the replies come in their order, whoever gives them."""
    for number, command in enumerate(("query-a", "query-sev", "query-b", "query-sev-launch-measure", "query-c")):
        client.send(command, id=number)
    assert [client.reply()["id"] for _ in range(5)] == [0, 1, 2, 3, 4]


def test_notices_that_the_guest_runs(client: Client) -> None:
    """The firmware's state follows the start of the virtual processors."""
    states = []
    for command in ("query-sev", "cont", "query-sev"):
        client.send(command)
        states.append(client.reply()["return"].get("state"))
    assert states == ["launch-secret", None, "running"]


def test_passes_events(stand: Stand, client: Client) -> None:
    """What QEMU says unasked arrives as it is."""
    event = b'{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "SHUTDOWN", "data": {"guest": true}}\r\n'
    stand.qemu.say(event)
    assert client.line() == event


def test_passes_large_replies(client: Client) -> None:
    """A reply of megabytes arrives whole, also with an answer of the firmware behind it."""
    client.send("query-large", id=1)
    client.send("query-sev", id=2)
    assert len(client.reply()["return"]) == LARGE
    assert client.reply()["id"] == 2


def test_passes_descriptors(stand: Stand, client: Client, tmp_path: Path) -> None:
    """A file that libvirt passes over the socket arrives at QEMU, with the command that it came with."""
    path = tmp_path / "passed"
    path.write_bytes(b"content")
    with path.open("rb") as file:
        line = b'{"execute": "getfd", "arguments": {"fdname": "f"}, "id": 1}\r\n'
        socket.send_fds(client.connection, [line[:10]], [file.fileno()])
        client.connection.sendall(line[10:])
    assert client.reply()["return"] == {"command": "getfd"}
    assert stand.qemu.received_files == [b"content"]


def test_a_second_client_starts_anew(stand: Stand) -> None:
    """A libvirtd that comes back is greeted and negotiates again."""
    for _ in range(2):
        client = stand.client()
        client.negotiate()
        client.send("query-sev")
        assert client.reply()["return"]["enabled"]
        client.close()
    assert stand.qemu.greetings == 2


def test_words_after_the_end_arrive(stand: Stand, client: Client) -> None:
    """What QEMU's socket still holds when its end is known is read by the client too."""
    last = b'{"event": "SHUTDOWN", "data": {"reason": "host-signal"}}\r\n'
    stand.tell_end()
    ended_early, _, _ = select.select([client.connection], [], [], 0.1)
    stand.qemu.say(last)
    stand.qemu.end()
    stand.join()
    assert not ended_early
    assert [client.line(), client.line()] == [last, b""]


def test_qemus_last_words_arrive(stand: Stand, client: Client) -> None:
    """What QEMU says just before its end is read by the client, then the connection ends, and the stand too."""
    last = b'{"event": "SHUTDOWN", "data": {"reason": "host-signal"}}\r\n'
    stand.qemu.say(last)
    stand.end_qemu()
    assert [client.line(), client.line()] == [last, b""]
    assert not stand.thread.is_alive()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(content=st.binary().map(lambda content: content.replace(b"\n", b"")))
def test_passes_any_line_unchanged(client: Client, content: bytes) -> None:
    """What is no question for the firmware arrives byte for byte, and so does the reply."""
    line = b"[" + content + b"]\r\n"
    client.connection.sendall(line)
    assert client.line() == line
