"""A stand between libvirt and QEMU's monitor: the firmware's questions are answered here, all else passes as it is.

QEMU listens on a socket that only this process connects to, anew for each client. So its greeting and its negotiation
are its own, and a libvirtd that comes back finds what it would find at QEMU itself.
"""

import array
import json
import os
import re
import select
import socket
from collections.abc import Callable
from typing import Any

from .firmware import Platform

_CHUNK = 65536
_MOST_QUEUED = 1 << 20
_MOST_DESCRIPTORS = 64
_LAST_WORDS = 5.0
_READ = select.POLLIN | select.POLLHUP | select.POLLERR
_COMMAND = re.compile(rb'"(?:execute|exec-oob)"\s*:\s*"([a-z0-9_-]+)"')
_STAND_IN = "query-name"


class Stream:
    """One connection, its unfinished line, and what waits to be written to it."""

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(0)
        self.connection = connection
        self.ended = False
        self._partial = b""
        self._queued: list[tuple[bytes, list[int]]] = []
        self._length = 0

    def read(self) -> tuple[list[bytes], list[int]]:
        """The lines that are complete now, and the descriptors that came with them; ``ended`` at the end."""
        room = socket.CMSG_SPACE(_MOST_DESCRIPTORS * array.array("i").itemsize)
        try:
            data, ancillary, _, _ = self.connection.recvmsg(_CHUNK, room, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return [], []
        except OSError:
            data, ancillary = b"", []
        self.ended = not data
        *lines, self._partial = (self._partial + data).split(b"\n")
        return [line + b"\n" for line in lines], _descriptors(ancillary)

    def rest(self) -> bytes:
        """What came after the last whole line."""
        rest, self._partial = self._partial, b""
        return rest

    def write(self, data: bytes, descriptors: list[int] | None = None) -> None:
        """Queue ``data``; ``descriptors`` travel with its first byte and are closed here after that."""
        self._queued.append((data, descriptors or []))
        self._length += len(data)
        self.flush()

    def flush(self) -> None:
        while self._queued:
            data, descriptors = self._queued[0]
            try:
                if descriptors:
                    sent = socket.send_fds(self.connection, [data], descriptors)
                else:
                    sent = self.connection.send(data)
            except BlockingIOError:
                return
            except OSError:
                self.ended = True
                self._forget()
                return
            for descriptor in descriptors:
                os.close(descriptor)
            self._length -= sent
            if sent == len(data):
                self._queued.pop(0)
            else:
                self._queued[0] = (data[sent:], [])

    def close(self) -> None:
        self._forget()
        self.connection.close()

    @property
    def waiting(self) -> bool:
        return bool(self._queued)

    @property
    def full(self) -> bool:
        return self._length > _MOST_QUEUED

    def _forget(self) -> None:
        for _, descriptors in self._queued:
            for descriptor in descriptors:
                os.close(descriptor)
        self._queued.clear()
        self._length = 0


class Session:
    """One client's conversation with QEMU.

    A command for the firmware goes to QEMU as a harmless query under an id of ours; the answer takes the place of that
    query's reply. So replies keep QEMU's order, and one before the negotiation gets QEMU's own refusal.
    """

    def __init__(self, client: Stream, qemu: Stream, platform: Platform) -> None:
        self.client = client
        self.qemu = qemu
        self._platform = platform
        self._numbers = 0
        self._expected: dict[str, tuple[str, dict[str, Any]]] = {}
        self._descriptors: list[int] = []

    @property
    def ended(self) -> bool:
        return self.client.ended or self.qemu.ended

    def from_client(self) -> None:
        lines, descriptors = self.client.read()
        self._descriptors += descriptors
        for line in lines:
            self.qemu.write(self._request(line), self._descriptors)
            self._descriptors = []

    def from_qemu(self) -> None:
        lines, _ = self.qemu.read()
        if not self._expected:
            data = b"".join(lines) + self.qemu.rest() if self.qemu.ended else b"".join(lines)
        else:
            data = b"".join(self._reply(line) for line in lines)
        if data:
            self.client.write(data)

    def close(self) -> None:
        for descriptor in self._descriptors:
            os.close(descriptor)
        self.client.close()
        self.qemu.close()

    def _request(self, line: bytes) -> bytes:
        found = _COMMAND.search(line)
        command = found.group(1).decode("ascii") if found else ""
        self._platform.observe(command)
        if command not in self._platform.commands:
            return line
        try:
            request = json.loads(line)
        except ValueError:
            return line
        if request.get("execute") != command:
            return line
        self._numbers += 1
        number = f"sev-shim-{self._numbers}"
        self._expected[number] = (command, {key: request[key] for key in ("id",) if key in request})
        return json.dumps({"execute": _STAND_IN, "id": number}).encode("ascii") + b"\r\n"

    def _reply(self, line: bytes) -> bytes:
        if b'"sev-shim-' not in line:
            return line
        try:
            reply = json.loads(line)
        except ValueError:
            return line
        expected = self._expected.pop(str(reply.get("id")), None)
        if expected is None:
            return line
        command, identity = expected
        body = {"error": reply["error"]} if "error" in reply else self._platform.answer(command)
        return json.dumps({**body, **identity}).encode("ascii") + b"\r\n"


def serve(listener: socket.socket, connect: Callable[[], socket.socket], platform: Platform, life: int) -> None:
    """Serve one client after the other, as QEMU does, until ``life`` becomes ready: QEMU has ended.

    Raises ``LaunchError`` when the client asks for what ends in one; its connection is left open then.
    """
    session: Session | None = None
    listener.settimeout(0)
    while True:
        ready = dict(_poll(listener, session, life))
        if session is not None:
            _carry(session, ready)
            if session.ended:
                _last_words(session)
                session = None
        elif listener.fileno() in ready:
            session = _accept(listener, connect, platform)
        if life in ready:
            if session is not None:
                _drain(session)
                _last_words(session)
            return


def wait(life: int) -> None:
    """Return when ``life`` becomes ready."""
    poll = select.poll()
    poll.register(life, select.POLLIN)
    poll.poll()


def _poll(listener: socket.socket, session: Session | None, life: int) -> list[tuple[int, int]]:
    poll = select.poll()
    poll.register(life, select.POLLIN)
    if session is None:
        poll.register(listener, select.POLLIN)
    else:
        # A side that cannot take more stops the other from being read.
        for stream, other in ((session.client, session.qemu), (session.qemu, session.client)):
            wanted = (0 if other.full else select.POLLIN) | (select.POLLOUT if stream.waiting else 0)
            poll.register(stream.connection, wanted)
    return poll.poll()


def _carry(session: Session, ready: dict[int, int]) -> None:
    client = ready.get(session.client.connection.fileno(), 0)
    qemu = ready.get(session.qemu.connection.fileno(), 0)
    if client & select.POLLOUT:
        session.client.flush()
    if qemu & select.POLLOUT:
        session.qemu.flush()
    if qemu & _READ:
        session.from_qemu()
    if client & _READ:
        session.from_client()


def _accept(listener: socket.socket, connect: Callable[[], socket.socket], platform: Platform) -> Session | None:
    try:
        client, _ = listener.accept()
    except BlockingIOError:
        return None
    try:
        return Session(Stream(client), Stream(connect()), platform)
    except OSError:
        client.close()
        return None


def _drain(session: Session) -> None:
    """Read what QEMU left in its socket: its end may be known before that is."""
    poll = select.poll()
    poll.register(session.qemu.connection, select.POLLIN)
    while not session.qemu.ended and poll.poll(int(_LAST_WORDS * 1000)):
        session.from_qemu()


def _last_words(session: Session) -> None:
    """Give the client what QEMU said last, then end: libvirt reads the reason of a shutdown there."""
    session.client.connection.settimeout(_LAST_WORDS)
    session.client.flush()
    session.close()


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    found = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            found.frombytes(data[: len(data) - len(data) % found.itemsize])
    return list(found)
