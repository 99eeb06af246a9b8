"""A TCP proxy on loopback that cuts, freezes, refuses and answers connections by itself on demand."""

import asyncio
import contextlib
from types import TracebackType
from typing import Self

_CHUNK = 65536


class Proxy:
    """Passes connections on to ``port`` on 127.0.0.1. Use as an asynchronous context; its own port is ``port``."""

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._pumps: set[asyncio.Task[None]] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._clients: set[asyncio.StreamWriter] = set()
        self._ending = asyncio.Event()
        self._ending.set()
        self._refusing = False
        self._nonsense: bytes | None = None
        self._trigger: bytes | None = None
        self.sprung = asyncio.Event()
        self.port = 0
        self.accepted = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        for pump in self._pumps:
            pump.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)

    def cut(self) -> None:
        """Reset every connection; new ones are still accepted."""
        for writer in self._writers:
            writer.transport.abort()

    def refuse(self) -> None:
        """Cut every connection, and from now on every new one at once."""
        self._refusing = True
        self.cut()

    def accept(self) -> None:
        """Take connections again."""
        self._refusing = False

    def answer(self, nonsense: bytes) -> None:
        """Cut every connection, and from now on answer whatever comes on a new one with ``nonsense``, and close it."""
        self._nonsense = nonsense
        self.cut()

    def heal(self) -> None:
        """Be a proxy again, whatever it was told before. What hangs goes on, answers of its own are over."""
        if self._nonsense is not None:
            self._nonsense = None
            self.cut()
        self.accept()
        self.thaw()
        self.end()

    def freeze(self) -> None:
        """Pass no byte on, and close nothing: a peer that hangs."""
        self._flowing.clear()

    def freeze_at(self, text: bytes) -> None:
        """Freeze as soon as ``text`` comes from either side, before it is passed on; ``sprung`` is set then."""
        self._trigger = text
        self.sprung.clear()

    def thaw(self) -> None:
        self._trigger = None
        self._flowing.set()

    def strand(self) -> None:
        """Reset every connection towards its client, and let the server believe, until ``end``, that it lives."""
        self._ending.clear()
        for writer in self._clients:
            writer.transport.abort()

    def end(self) -> None:
        """Let the server know of the ends that ``strand`` kept from it."""
        self._ending.set()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refusing:
            writer.transport.abort()
            return
        self.accepted += 1
        if self._nonsense is not None:
            await self._answer(self._nonsense, reader, writer)
            return
        try:
            upstream_reader, upstream_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, upstream_writer}
        self._clients.add(writer)
        for source, sink in ((reader, upstream_writer), (upstream_reader, writer)):
            pump = asyncio.create_task(self._pump(source, sink), name=f"proxy:{self.port}")
            self._pumps.add(pump)
            pump.add_done_callback(self._pumps.discard)

    async def _answer(self, nonsense: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        with contextlib.suppress(OSError):
            await reader.read(_CHUNK)
            writer.write(nonsense)
            await writer.drain()
            writer.close()
            await writer.wait_closed()
        self._writers.discard(writer)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while chunk := await source.read(_CHUNK):
                if self._trigger is not None and self._trigger in chunk:
                    self._trigger = None
                    self.freeze()
                    self.sprung.set()
                await self._flowing.wait()
                sink.write(chunk)
                await sink.drain()
        await self._ending.wait()
        self._writers.discard(sink)
        self._clients.discard(sink)
        with contextlib.suppress(OSError):
            sink.close()
            await sink.wait_closed()
