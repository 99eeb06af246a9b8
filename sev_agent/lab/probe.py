"""Asking a local service whether it works."""

import asyncio
from collections.abc import Iterable

import aiohttp

_AMQP_HEADER = b"AMQP\x00\x00\x09\x01"


async def http_answers(url: str, statuses: Iterable[int] = (200, 300)) -> bool:
    """Whether ``GET url`` is answered with one of ``statuses``."""
    try:
        async with aiohttp.ClientSession() as session, session.get(url) as response:
            return response.status in set(statuses)
    except (aiohttp.ClientError, TimeoutError):
        return False


async def amqp_answers(port: int) -> bool:
    """Whether an AMQP 0-9-1 broker on loopback opens the conversation with its first method frame."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(_AMQP_HEADER)
        await writer.drain()
        return await reader.readexactly(1) == b"\x01"
    except asyncio.IncompleteReadError:
        return False
    finally:
        writer.close()


async def tcp_answers(port: int) -> bool:
    """Whether something accepts connections on ``port`` of loopback."""
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True
