"""The commands' way to a host: a connection to the broker for as long as one command needs it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated, Any, Final
from uuid import UUID

import typer
from pydantic import JsonValue, SecretStr, ValidationError

from sev_agent import log
from sev_agent.cli.output import WrongUsage
from sev_agent.config import LogSection, MessagingSection
from sev_agent.messaging import topology
from sev_agent.messaging.broker import Broker, BrokerUnavailable
from sev_agent.messaging.client import RpcClient

MAX_REPLY_BYTES: Final = 16 * 1024 * 1024
CALL_SECONDS: Final = 30.0
_CONNECT_SECONDS: Final = 10.0

BrokerUrl = Annotated[
    str,
    typer.Option(
        "--broker",
        envvar="SEV_AGENT_BROKER_URL",
        help="RabbitMQ, as amqp://USER:PASSWORD@ADDRESS:PORT/.",
    ),
]
HostName = Annotated[str, typer.Option("--host", envvar="SEV_AGENT_HOST", help="The compute host to ask.")]
Uuid = Annotated[str, typer.Argument(metavar="UUID", help="The instance.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Remote:
    """One host, reached through the broker."""

    broker: Broker
    client: RpcClient
    host: str

    async def ask(self, method: str, **arguments: Any) -> JsonValue:
        """A question, answered by the host also while its hypervisor is away."""
        return await self.client.call(
            method, arguments, queue=topology.query_queue_name(self.host), timeout=CALL_SECONDS
        )

    async def ask_long(self, method: str, *, limit: float, **arguments: Any) -> JsonValue:
        """As ``ask``, for what may take the host ``limit`` seconds."""
        queue = topology.query_queue_name(self.host)
        return await self.client.call(method, arguments, queue=queue, timeout=limit + CALL_SECONDS)

    async def order(self, method: str, **arguments: Any) -> JsonValue:
        """A request, answered once it is in the host's journal."""
        return await self.client.call(
            method, arguments, queue=topology.work_queue_name(self.host), timeout=CALL_SECONDS
        )


@contextlib.asynccontextmanager
async def connected(
    url: str, host: str, *, told_by: str = "--broker, or SEV_AGENT_BROKER_URL"
) -> AsyncIterator[Remote]:
    """``told_by`` says where ``url`` can be changed.

    Raises ``BrokerUnavailable`` when the broker does not answer within ten seconds, ``WrongUsage``.
    """
    log.configure(LogSection(level="error"))
    broker = Broker(
        _checked(url),
        connection_name="sev-agent command",
        connect_timeout=_CONNECT_SECONDS,
        reconnect_max=1,
        publish_timeout=_CONNECT_SECONDS,
    )
    client = RpcClient(broker, max_message_bytes=MAX_REPLY_BYTES)
    tasks = [
        asyncio.create_task(broker.run(), name="broker"),
        asyncio.create_task(client.run(), name="rpc-replies"),
    ]
    try:
        try:
            await broker.wait_up(_CONNECT_SECONDS)
        except BrokerUnavailable as error:
            # The broker's own remedy is for a daemon, which goes on trying.
            error.remedy = f"check that it runs, and its address, user, password and virtual host in {told_by}"
            raise
        yield Remote(broker=broker, client=client, host=host)
    finally:
        for task in reversed(tasks):
            task.cancel()
            await asyncio.wait({task})


def _checked(url: str) -> str:
    try:
        return MessagingSection(url=SecretStr(url)).url.get_secret_value()
    except ValidationError as error:
        raise WrongUsage(
            error.errors()[0]["msg"].removeprefix("Value error, "),
            field="--broker",
            remedy="or set SEV_AGENT_BROKER_URL; in a lab, read its openrc",
        ) from None


def parse_uuid(text: str) -> str:
    """The UUID in its usual spelling. Raises ``WrongUsage``."""
    try:
        return str(UUID(text))
    except ValueError:
        raise WrongUsage(
            f"'{text}' is not a UUID", field="UUID", remedy="copy it from 'sev-agent instance list'"
        ) from None
