"""What aio-pika raises becomes ours, and a cancellation stays what it is."""

import asyncio
from collections.abc import Callable

import pytest
from aio_pika.exceptions import ChannelInvalidStateError, ConnectionClosed

from sev_agent.messaging.broker import BrokerUnavailable, broker_errors


@pytest.mark.parametrize(
    "error",
    [ConnectionClosed(320, "bye"), ChannelInvalidStateError("x"), OSError("reset"), TimeoutError(), Exception()],
)
async def test_loss_is_unavailable(error: Exception) -> None:
    """Each way of saying that the broker is gone is one error, retryable, that says what was being done."""
    with pytest.raises(BrokerUnavailable, match="cannot ask") as caught, broker_errors("ask"):
        raise error
    assert caught.value.retryable


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ConnectionClosed(320, "bye"), "cannot ask: ConnectionClosed: bye"),
        (OSError(104, "reset"), "cannot ask: ConnectionResetError: reset"),
        (TimeoutError(), "cannot ask: TimeoutError"),
    ],
)
async def test_reason_in_words(error: Exception, said: str) -> None:
    """What is told of a loss is its kind and its reason, without the library's numbers."""
    with pytest.raises(BrokerUnavailable) as caught, broker_errors("ask"):
        raise error
    assert caught.value.message == said


async def test_fault_of_ours_passes() -> None:
    """A programming error is not taken for an outage."""
    with pytest.raises(TypeError), broker_errors("ask"):
        raise TypeError


async def test_cancellation_that_nobody_asked_for_is_a_loss() -> None:
    """A future that the channel cancelled does not cancel the task that waits for it."""
    closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    closed.cancel()
    with pytest.raises(BrokerUnavailable), broker_errors("ask"):
        await closed


@pytest.mark.parametrize("comes_out_as", [asyncio.CancelledError, lambda: ConnectionClosed(320, "bye")])
async def test_true_cancellation_stays_one(comes_out_as: Callable[[], BaseException]) -> None:
    """A cancelled task ends as cancelled even when the library replaces the cancellation by its own error."""

    async def asks() -> None:
        with broker_errors("ask"):
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                raise comes_out_as() from None

    task = asyncio.create_task(asks())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait({task})
    assert task.cancelled()
