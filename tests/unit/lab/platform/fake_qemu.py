"""A peer that speaks QEMU's monitor protocol, as far as a stand before it could do harm."""

import array
import json
import socket
import threading
from pathlib import Path

PATIENCE = 10.0
GREETING = b'{"QMP": {"version": {"qemu": {"micro": 2, "minor": 0, "major": 10}}, "capabilities": ["oob"]}}\r\n'
NOT_NEGOTIATED = {"class": "CommandNotFound", "desc": "Expecting capabilities negotiation with 'qmp_capabilities'"}
LARGE = 3_000_000


class FakeQemu:
    """Serves one client after the other at ``path``: greeting, negotiation, commands. Other lines it sends back."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listening.bind(str(path))
        self._listening.listen(1)
        self._client: socket.socket | None = None
        self._negotiated = False
        self.received_files: list[bytes] = []
        self.greetings = 0
        self._thread = threading.Thread(target=self._serve, name="fake qemu", daemon=True)
        self._thread.start()

    def connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.connect(str(self._path))
        return connection

    def say(self, line: bytes) -> None:
        assert self._client is not None
        self._client.sendall(line)

    def end(self) -> None:
        """Go as a process goes: all its sockets at once."""
        self._listening.shutdown(socket.SHUT_RDWR)
        if self._client is not None:
            self._client.shutdown(socket.SHUT_RDWR)
        self._thread.join(PATIENCE)
        self._listening.close()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            with client:
                self._client = client
                self._talk(client)
                self._client = None

    def _talk(self, client: socket.socket) -> None:
        self._negotiated = False
        self.greetings += 1
        client.sendall(GREETING)
        partial = b""
        while True:
            try:
                data, ancillary, _, _ = client.recvmsg(65536, socket.CMSG_SPACE(4))
            except OSError:
                return
            if not data:
                return
            for _, _, descriptors in ancillary:
                self._read_file(descriptors)
            *lines, partial = (partial + data).split(b"\n")
            for line in lines:
                client.sendall(self._answer(line + b"\n"))

    def _read_file(self, descriptors: bytes) -> None:
        for descriptor in array.array("i", descriptors):
            with open(descriptor, "rb") as file:  # noqa: PTH123 - a descriptor, not a path
                self.received_files.append(file.read())

    def _answer(self, line: bytes) -> bytes:
        try:
            request = json.loads(line)
            command = request["execute"]
        except (ValueError, TypeError, KeyError):
            return line
        body: dict[str, object]
        match command:
            case "qmp_capabilities":
                self._negotiated = True
                body = {"return": {}}
            case _ if not self._negotiated:
                body = {"error": NOT_NEGOTIATED}
            case "query-name":
                body = {"return": {"name": "guest"}}
            case "query-large":
                body = {"return": "x" * LARGE}
            case _:
                body = {"return": {"command": command}}
        identity = {"id": request["id"]} if "id" in request else {}
        return json.dumps({**body, **identity}).encode() + b"\r\n"
