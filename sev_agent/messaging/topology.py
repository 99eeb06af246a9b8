"""Names and properties of the exchange and the queues, and their declaration."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from aio_pika.abc import AbstractChannel, AbstractQueue
from aio_pika.exceptions import ChannelPreconditionFailed

from sev_agent.errors import Conflict

EXCHANGE = "sev"
DEAD_LETTER_QUEUE = "sev_agent.dead"
SCHEDULER_QUEUE = "sev_scheduler"
API_QUEUE = "sev_api.notifications"
NOTIFICATION_TOPIC = "sev_notifications"

MAX_DEAD_LETTERS = 10_000
"""Older ones make way, so that a flood of garbage cannot fill the broker's disk."""

MAX_NOTIFICATIONS = 100_000
"""What the API may be behind before the oldest are dropped; it asks the hosts about what it then misses."""

QUESTION_TTL = 60
"""Seconds after which a question is dropped: whoever asked has stopped waiting."""

QUERY_QUEUE_EXPIRY = 600
"""Seconds without a consumer after which a query queue goes, so that asking a host that left fails at once."""


class TopologyMismatch(Conflict):
    """The broker has the queue or exchange already, with other properties."""

    code = "message.topology"


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueSpec:
    """A queue that is shared by name: durable, and a quorum queue.

    Quorum and not classic, also for questions: a durable classic queue lives on one node of the broker's cluster, and
    while that node is away it can be neither used nor declared again, so a third of the hosts would be deaf.
    ``arguments`` are RabbitMQ's; ``dead_letters`` says that the queue relies on ``sev_agent.dead``; ``keys`` are the
    routing keys that lead to it, its own name where none is given.
    """

    name: str
    arguments: Mapping[str, str | int] = field(default_factory=dict)
    dead_letters: bool = False
    keys: tuple[str, ...] = ()

    async def declare(self, channel: AbstractChannel, *, timeout: float) -> AbstractQueue:
        """Make the queue, bound to the exchange under its keys; a dead-letter queue first where it relies on it.

        Raises ``TopologyMismatch``, and aio-pika's errors.
        """
        if self.dead_letters:
            await DEAD_LETTERS.declare(channel, timeout=timeout)
        try:
            queue = await channel.declare_queue(
                self.name, durable=True, arguments={"x-queue-type": "quorum", **self.arguments}, timeout=timeout
            )
        except ChannelPreconditionFailed as error:
            raise _mismatch(f"queue '{self.name}'", f"rabbitmqctl delete_queue {self.name}", error) from error
        if self.name != DEAD_LETTER_QUEUE:
            for key in self.keys or (self.name,):
                await queue.bind(EXCHANGE, routing_key=key, timeout=timeout)
        return queue


DEAD_LETTERS = QueueSpec(
    name=DEAD_LETTER_QUEUE, arguments={"x-max-length": MAX_DEAD_LETTERS, "x-overflow": "drop-head"}
)


def work_queue_name(host: str) -> str:
    """In oslo.messaging's terms topic ``sev_agent``, server ``host``."""
    return f"sev_agent.{host}"


def query_queue_name(host: str) -> str:
    """In oslo.messaging's terms topic ``sev_agent_query``, server ``host``."""
    return f"sev_agent_query.{host}"


def work_queue(host: str, *, delivery_limit: int) -> QueueSpec:
    """Where a host is told what to do. What it cannot take in ``delivery_limit`` deliveries is dead-lettered."""
    return _work(work_queue_name(host), delivery_limit)


def scheduler_queue(*, delivery_limit: int) -> QueueSpec:
    """Where all schedulers together take their requests from."""
    return _work(SCHEDULER_QUEUE, delivery_limit)


def api_queue() -> QueueSpec:
    """Where all API processes together hear what happened, from the first one's first start on."""
    return QueueSpec(
        name=API_QUEUE,
        arguments={"x-max-length": MAX_NOTIFICATIONS, "x-overflow": "drop-head"},
        keys=(notification_key("info"), notification_key("error")),
    )


def _work(name: str, delivery_limit: int) -> QueueSpec:
    return QueueSpec(
        name=name,
        dead_letters=True,
        arguments={
            "x-delivery-limit": delivery_limit,
            "x-dead-letter-exchange": "",
            "x-dead-letter-routing-key": DEAD_LETTER_QUEUE,
            # Only with this pair is a message kept until the dead-letter queue has confirmed it.
            "x-dead-letter-strategy": "at-least-once",
            "x-overflow": "reject-publish",
        },
    )


def query_queue(host: str) -> QueueSpec:
    """Where a host is asked what changes nothing. Stale questions are dropped, and the queue of a host that left."""
    return QueueSpec(
        name=query_queue_name(host),
        arguments={
            "x-delivery-limit": 3,
            "x-message-ttl": QUESTION_TTL * 1000,
            "x-expires": QUERY_QUEUE_EXPIRY * 1000,
        },
    )


def notification_key(priority: str) -> str:
    """The routing key of a priority's notifications.

    No queue is declared for them here, though oslo's publisher declares a durable one of that name: without a listener
    it grows until the broker's disk is full, and with a bound on it no stock listener could declare it again
    (precondition failed). Each listener's own queue keeps what it has to hear, from its first start on.
    """
    return f"{NOTIFICATION_TOPIC}.{priority}"


async def declare_exchange(channel: AbstractChannel, *, timeout: float) -> None:
    """Make the exchange. Raises ``TopologyMismatch``, and aio-pika's errors."""
    try:
        await channel.declare_exchange(EXCHANGE, "topic", durable=True, timeout=timeout)
    except ChannelPreconditionFailed as error:
        raise _mismatch(f"exchange '{EXCHANGE}'", f"delete exchange '{EXCHANGE}'", error) from error


def _mismatch(what: str, command: str, error: Exception) -> TopologyMismatch:
    return TopologyMismatch(
        f"the broker has {what} with other properties: {error}",
        field="messaging",
        remedy=f"restore the setting that was changed (messaging.delivery_limit?), or stop its users and {command}; "
        "what still waits in it is lost",
    )
