"""What is behind the broker's address and is no RabbitMQ."""

import asyncio
import struct

import pytest

from sev_agent.messaging.broker import Broker, BrokerUnavailable

_PATIENCE = 60.0
_METHOD, _CONNECTION = 1, 10


def _frame(kind: int, payload: bytes) -> bytes:
    return struct.pack(">BHI", kind, 0, len(payload)) + payload + b"\xce"


def _method(number: int, arguments: bytes) -> bytes:
    return _frame(_METHOD, struct.pack(">HH", _CONNECTION, number) + arguments)


def _long(text: bytes) -> bytes:
    return struct.pack(">I", len(text)) + text


# AMQP 0-9-1, section 1.4: start, tune and open-ok, as a server sends them that has no properties to tell.
_START = _method(10, b"\x00\x09" + _long(b"") + _long(b"PLAIN") + _long(b"en_US"))
_TUNE = _method(30, struct.pack(">HIH", 0, 0, 0))
_OPEN_OK = _method(41, b"\x00")
_HEADER = _frame(2, b"\x00\x0a\x00\x00" + struct.pack(">Q", 1) + b"\xff\xff")


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(_START + _TUNE + _OPEN_OK, id="a broker without properties"),
        pytest.param(_START + _HEADER, id="a content nobody asked for"),
        pytest.param(_method(99, b""), id="an unknown method"),
        pytest.param(b"HTTP/1.1 400 Bad Request\r\n\r\n", id="a web server"),
    ],
)
async def test_no_rabbitmq(answer: bytes) -> None:
    """Another service at the address, whatever it says, makes the broker unavailable; it is tried again for ever."""
    asked = 0
    told: asyncio.Queue[bool] = asyncio.Queue()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        asked += 1
        await reader.readexactly(8)
        writer.write(answer)
        await writer.drain()
        await reader.read()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        broker = Broker(
            f"amqp://guest:guest@127.0.0.1:{port}/",
            connection_name="test",
            connect_timeout=1,
            reconnect_max=0.1,
            publish_timeout=1,
            on_change=told.put_nowait,
        )
        running = asyncio.create_task(broker.run())
        try:
            async with asyncio.timeout(_PATIENCE):
                assert not await told.get()
                while asked < 2:  # noqa: ASYNC110 - the server rings no bell
                    await asyncio.sleep(0.05)
            assert not running.done()
            assert isinstance(broker.fault, BrokerUnavailable)
        finally:
            running.cancel()
            await asyncio.wait({running})
