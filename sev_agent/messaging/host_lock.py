"""One daemon for one host name: a lock that the broker keeps for as long as the daemon's connection lives."""

import asyncio
import contextlib
from typing import Final

import structlog
from aio_pika.abc import AbstractChannel
from aiormq.exceptions import ChannelLockedResource

from sev_agent.errors import HostTaken, Unavailable
from sev_agent.messaging.broker import BrokerUnavailable, Link, broker_errors

log = structlog.stdlib.get_logger(__name__)

_AT_START: Final = 5.0
_AFTER_LOSS: Final = 60.0


class HostBusy(Unavailable):
    """Another connection still has this host's name; it may be this daemon's own last one."""

    code = "host.busy"


class HostLock:
    """Holds the exclusive queue ``sev_agent_lock.<host>`` on the daemon's one connection: the ``claim`` of its broker.

    While another connection has it, there is no link, so nothing is consumed and nothing is told. How long that is
    borne differs, in seconds. ``at_start`` is short: a predecessor that was killed is gone within milliseconds, so
    whoever has the name now is most likely another daemon. (Its host may also have lost power: then the broker finds
    it dead by its heartbeat, within 30 s, while the service manager tries again.) ``after_loss`` is longer: the other
    one is most likely this daemon's own last connection, which the broker has not found dead yet.

    An exclusive queue lives on the node that made it, under a name that the whole cluster knows. While a network
    partition splits the cluster, two daemons can hold it; the two state directories' locks do not depend on it.
    """

    def __init__(self, host: str, *, at_start: float = _AT_START, after_loss: float = _AFTER_LOSS) -> None:
        self._host = host
        self._patience = at_start
        self._after_loss = after_loss
        self._refused_since: float | None = None

    async def take(self, link: Link) -> None:
        """Take the lock for as long as ``link`` lives.

        Raises ``HostBusy`` while another connection has it, ``HostTaken`` once that lasts too long, and
        ``BrokerUnavailable``.
        """
        channel = await link.channel()
        try:
            with broker_errors(f"take {lock_name(self._host)}"):
                await self._declare(channel, timeout=link.timeout)
        finally:
            # The queue belongs to the connection: it outlives the channel that declared it.
            with contextlib.suppress(BrokerUnavailable), broker_errors("close the channel"):
                async with asyncio.timeout(link.timeout):
                    await channel.close()
        self._refused_since = None
        self._patience = self._after_loss

    async def _declare(self, channel: AbstractChannel, *, timeout: float) -> None:
        try:
            await channel.declare_queue(lock_name(self._host), exclusive=True, auto_delete=True, timeout=timeout)
        except ChannelLockedResource:
            raise self._refusal() from None

    def _refusal(self) -> HostBusy | HostTaken:
        now = asyncio.get_running_loop().time()
        if self._refused_since is None:
            self._refused_since = now
        name = lock_name(self._host)
        if now - self._refused_since < self._patience:
            return HostBusy(f"another connection to the broker has queue '{name}'", remedy="it is tried again")
        return HostTaken(
            f"another daemon serves host '{self._host}' at this broker: it has queue '{name}'",
            field="host.name",
            remedy="give each host its own host.name, or stop the other daemon; 'rabbitmqctl list_queues -p VHOST "
            f"name owner_pid' tells which connection has '{name}', and 'rabbitmqctl list_connections pid "
            "peer_host client_properties' whose that is",
        )


def lock_name(host: str) -> str:
    """The exclusive queue that stands for the right to be ``host``."""
    return f"sev_agent_lock.{host}"
