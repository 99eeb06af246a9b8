"""Work that a cancellation must not leave half done."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


async def uninterrupted(work: Awaitable[T]) -> T:
    """Wait for ``work`` to its end also when cancelled, however often, and only then pass the cancellation on.

    For steps that go on by themselves once begun (a thread, a request that the peer may already carry out): whoever
    cancels may rely on it that nothing happens any more afterwards. ``work`` must be bounded in time.
    """
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is None:
        return task.result()
    if not task.cancelled():
        task.exception()  # marks it as seen: the cancellation is what the caller hears of
    raise cancelled


async def in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a blocking ``function`` in a thread, uninterrupted.

    A thread cannot be stopped: left alone it would go on, on a descriptor that is closed by then, or reused.
    """
    return await uninterrupted(asyncio.to_thread(function, *args, **kwargs))


def raise_if_cancelled() -> None:
    """Raise ``CancelledError`` in a task that was cancelled, even if something it awaited swallowed the first one.

    ``asyncio.wait_for``, which libraries use, does so until Python 3.12 when its work ends in the same turn of the
    loop. A loop that works until it is cancelled calls this each time round.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
