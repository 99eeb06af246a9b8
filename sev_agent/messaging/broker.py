"""The one connection to RabbitMQ: kept up for ever, its state always known."""

import asyncio
import contextlib
import struct
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import aio_pika
import structlog
from aio_pika.abc import AbstractChannel, AbstractConnection
from aio_pika.exceptions import CONNECTION_EXCEPTIONS, ProbableAuthenticationError, PublishError
from yarl import URL

from sev_agent.backoff import Backoff
from sev_agent.errors import HostTaken, NotFound, SevAgentError, Unavailable
from sev_agent.messaging import topology
from sev_agent.uninterrupted import raise_if_cancelled

log = structlog.stdlib.get_logger(__name__)

_FIRST_DELAY = 0.1
_CLOSE_TIMEOUT = 5.0
_REMEDY = "it is tried again; if that lasts, check RabbitMQ's own log"
_HEARTBEAT = 10
"""Seconds between signs of life. A broker that hangs is found dead after three are missed."""


class BrokerUnavailable(Unavailable):
    """RabbitMQ cannot be reached, or did not confirm in time: then what was sent may have arrived or not."""

    code = "broker.unavailable"


class Unroutable(NotFound):
    """No queue takes the message."""

    code = "message.unroutable"


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """How a message travels. ``expiration`` is the seconds after which nobody wants it any more."""

    exchange: str
    routing_key: str
    mandatory: bool = True
    expiration: float | None = None
    headers: Mapping[str, str] | None = None


class Link:
    """One living connection; when it is gone, ``lost`` is set and another one follows.

    ``timeout`` is the seconds that one exchange on it may take.
    """

    def __init__(self, connection: AbstractConnection, *, timeout: float) -> None:
        self.lost = asyncio.Event()
        self.timeout = timeout
        self._connection = connection
        self._publisher: AbstractChannel | None = None
        self._opening = asyncio.Lock()
        connection.close_callbacks.add(lambda *_: self.lost.set())

    async def channel(self, *, prefetch: int = 0) -> AbstractChannel:
        """Open a channel with publisher confirms. Raises ``BrokerUnavailable``."""
        with broker_errors("open a channel"):
            channel = self._connection.channel(on_return_raises=True)
            async with asyncio.timeout(self.timeout):
                await channel.initialize()
                if prefetch:
                    await channel.set_qos(prefetch_count=prefetch)
            return channel

    async def publisher(self) -> AbstractChannel:
        """The channel that all publishes share; a new one after an error closed it."""
        async with self._opening:
            if self._publisher is None or self._publisher.is_closed:
                self._publisher = await self.channel()
            return self._publisher

    async def close(self) -> None:
        """End the connection, within a bound even if the peer hangs."""
        try:
            await _close(self._connection)
        finally:
            self.lost.set()


async def _close(connection: AbstractConnection) -> None:
    with contextlib.suppress(BrokerUnavailable), broker_errors("close the connection"):
        async with asyncio.timeout(_CLOSE_TIMEOUT):
            await connection.close()
    # The first call gave the transport up, well or not; the second then marks the connection closed. One that is not
    # marked so starts a task of its own when it is collected, wherever that happens.
    await connection.close()


Claim: TypeAlias = Callable[[Link], Awaitable[None]]
"""What must succeed on a new connection before anybody may use it.

Any ``SevAgentError`` of it makes the connection fail, to be tried again; ``HostTaken`` ends ``Broker.run``.
"""


class Broker:
    """RabbitMQ as the rest of the package sees it: up with a ``Link``, or down.

    Built on a plain connection and not on aio-pika's robust one: that one brings channels and consumers back out of
    sight, so that neither "is the consumer there now" nor "this publish will wait" has an answer; here an outage
    fails at once, and each component sets its own channel up again on the next link.
    ``on_change`` is told of every change between up and down, and of every new ``fault`` while it is down. Times
    are seconds.
    """

    def __init__(
        self,
        url: str,
        *,
        connection_name: str,
        connect_timeout: float,
        reconnect_max: float,
        publish_timeout: float,
        claim: Claim | None = None,
        on_change: Callable[[bool], None] | None = None,
    ) -> None:
        self._url = URL(url)
        self._connection_name = connection_name
        self._connect_timeout = connect_timeout
        self._reconnect_max = reconnect_max
        self._publish_timeout = publish_timeout
        self._claim = claim
        self._on_change = on_change
        self._link: Link | None = None
        self._up = asyncio.Event()
        self._fault: SevAgentError | None = None

    @property
    def is_up(self) -> bool:
        return self._link is not None

    @property
    def fault(self) -> SevAgentError | None:
        """Why the last attempt to connect failed; ``None`` when up."""
        return self._fault

    @property
    def timeout(self) -> float:
        """Seconds that one exchange with the broker may take."""
        return self._publish_timeout

    async def run(self) -> None:
        """Connect, and connect again after each loss with a growing, jittered delay.

        Raises ``HostTaken`` where the claim says that it has become hopeless.
        """
        loop = asyncio.get_running_loop()
        backoff = Backoff(_FIRST_DELAY, self._reconnect_max)
        while True:
            raise_if_cancelled()
            try:
                link = await self._connect()
            except HostTaken:
                raise
            except SevAgentError as error:
                news = self._fault is None or self._fault.message != error.message
                self._fault = error
                if news:
                    log.warning("broker.connect.failed", broker=self._address, error=str(error))
                    self._tell(is_up=False)
            else:
                since = loop.time()
                await self._use(link)
                if loop.time() - since > self._reconnect_max:
                    backoff.reset()
            await backoff.pause()

    async def wait_up(self, timeout: float) -> Link:
        """The living connection, waiting up to ``timeout`` for it. Raises ``BrokerUnavailable``."""
        try:
            async with asyncio.timeout(timeout):
                return await self.link()
        except TimeoutError:
            raise self.unavailable(f"no connection within {timeout:g} s") from None

    async def link(self) -> Link:
        """The living connection, waiting for it as long as it takes: for components in their supervised loops."""
        while self._link is None:
            await self._up.wait()
        return self._link

    async def publish(self, body: bytes, delivery: Delivery) -> None:
        """Send a persistent message, and return once the broker has confirmed that it keeps it.

        Raises ``BrokerUnavailable`` (at once during an outage) and, if mandatory, ``Unroutable``.
        """
        link = self._link
        if link is None:
            raise self.unavailable("not connected")
        message = aio_pika.Message(
            body,
            content_type="application/json",
            content_encoding="utf-8",
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
            expiration=delivery.expiration,
            headers=dict(delivery.headers) if delivery.headers else None,
        )
        with broker_errors(f"publish to '{delivery.routing_key}'"):
            async with asyncio.timeout(self._publish_timeout):
                channel = await link.publisher()
                exchange = (
                    await channel.get_exchange(delivery.exchange, ensure=False)
                    if delivery.exchange
                    else channel.default_exchange
                )
                await exchange.publish(message, delivery.routing_key, mandatory=delivery.mandatory)

    @property
    def _address(self) -> str:
        return f"{self._url.host}:{self._url.port or 5672}{self._url.path}"

    def unavailable(self, why: str) -> BrokerUnavailable:
        """The error that says ``why``, and why the last attempt to connect failed."""
        cause = f"; last error: {self._fault.message}" if self._fault else ""
        return BrokerUnavailable(
            f"RabbitMQ at {self._address}: {why}{cause}",
            remedy=(self._fault and self._fault.remedy) or "check that it runs and that messaging.url is right",
        )

    async def _connect(self) -> Link:
        try:
            return await self._open()
        except (LookupError, ValueError, struct.error) as error:
            # The library trusts the greeting: it stumbles over one that is another service's, or half of one.
            raise BrokerUnavailable(
                f"cannot connect to {self._address}: it answers as no RabbitMQ does ({_said(error)})",
                remedy="check that messaging.url leads to RabbitMQ",
            ) from error

    async def _open(self) -> Link:
        try:
            with broker_errors(f"connect to {self._address}"):
                connection = aio_pika.Connection(
                    self._url if "heartbeat" in self._url.query else self._url.update_query(heartbeat=_HEARTBEAT),
                    client_properties={"connection_name": self._connection_name},
                )
                try:
                    async with asyncio.timeout(self._connect_timeout):
                        await connection.connect()
                except BaseException:
                    await _close(connection)
                    raise
        except BrokerUnavailable as error:
            if isinstance(error.__cause__, ProbableAuthenticationError):
                error.remedy = "check user, password and virtual host in messaging.url"
            raise
        link = Link(connection, timeout=self._publish_timeout)
        try:
            with broker_errors("declare the exchange"):
                await topology.declare_exchange(await link.publisher(), timeout=self._publish_timeout)
            if self._claim is not None:
                await self._claim(link)
        except BaseException:
            await link.close()
            raise
        return link

    async def _use(self, link: Link) -> None:
        self._fault = None
        self._link = link
        self._up.set()
        log.info("broker.up", broker=self._address)
        self._tell(is_up=True)
        try:
            raise_if_cancelled()
            await link.lost.wait()
            log.warning("broker.lost", broker=self._address)
        finally:
            self._link = None
            self._up.clear()
            self._tell(is_up=False)
            await link.close()

    def _tell(self, *, is_up: bool) -> None:
        if self._on_change is not None:
            self._on_change(is_up)


@contextlib.contextmanager
def broker_errors(doing: str) -> Iterator[None]:
    """Turn aio-pika's ways to say that the broker is gone into ``BrokerUnavailable``, a return into ``Unroutable``.

    What is cancelled stays cancelled, and nothing else is.
    """
    try:
        yield
    except (Exception, asyncio.CancelledError) as error:
        # aiormq confuses the two, in both directions: a closing channel cancels what waits on it, in tasks that nobody
        # cancelled; and a true cancellation of such a task comes out as the channel's error, which a supervised loop
        # would take for an outage, and go on for ever.
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise asyncio.CancelledError from error
        match error:
            case PublishError():
                raise Unroutable(f"cannot {doing}: no queue takes it", field="routing_key") from error
            case _ if _says_gone(error):
                raise BrokerUnavailable(f"cannot {doing}: {_said(error)}", remedy=_REMEDY) from error
        raise


def _said(error: BaseException) -> str:
    # The last argument is the reason in words, where there is one; before it stand the numbers of errno and AMQP.
    reason = str(error.args[-1]) if error.args else ""
    return f"{type(error).__name__}: {reason}" if reason else type(error).__name__


def _says_gone(error: BaseException) -> bool:
    # aiormq rejects what waits on a channel that was closed without a reason with a bare Exception.
    return type(error) is Exception or isinstance(error, (TimeoutError, asyncio.CancelledError, *CONNECTION_EXCEPTIONS))
