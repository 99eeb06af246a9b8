"""Work that outlives the cancellation of whoever waits for it."""

import asyncio
import contextlib
import threading

import pytest

from sev_agent.uninterrupted import in_thread, raise_if_cancelled, uninterrupted


async def test_result() -> None:
    """Without a cancellation it is a plain await."""
    assert await in_thread(divmod, 7, 2) == (3, 1)


async def test_error() -> None:
    """An error of the work is the caller's."""
    with pytest.raises(ZeroDivisionError):
        await in_thread(divmod, 1, 0)


@pytest.mark.parametrize("times", [1, 3])
async def test_cancelled(times: int) -> None:
    """However often it is cancelled, the work ends first, and then the cancellation arrives."""
    begun, may_end = asyncio.Event(), asyncio.Event()
    ended = False

    async def work() -> None:
        nonlocal ended
        begun.set()
        await may_end.wait()
        ended = True

    task = asyncio.create_task(uninterrupted(work()))
    await begun.wait()
    for _ in range(times):
        task.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert not task.done()
    may_end.set()

    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended


async def test_cancelled_thread() -> None:
    """A thread is waited for: nothing goes on behind the back of whoever cancelled."""
    begun, may_end, ended = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        may_end.wait()
        ended.set()

    task = asyncio.create_task(in_thread(work))
    await asyncio.to_thread(begun.wait)
    task.cancel()
    await asyncio.sleep(0)
    may_end.set()

    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.is_set()


async def test_cancelled_work_that_fails() -> None:
    """The error of work that nobody waits for any more is not reported as lost: the cancellation is what counts."""
    lost: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: lost.append(context))
    may_fail = asyncio.Event()

    async def work() -> None:
        await may_fail.wait()
        raise ValueError

    task = asyncio.create_task(uninterrupted(work()))
    await asyncio.sleep(0)
    task.cancel()
    may_fail.set()

    with pytest.raises(asyncio.CancelledError):
        await task
    assert not lost


async def test_swallowed_cancellation() -> None:
    """A cancellation that something swallowed is raised again."""

    async def swallow() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        raise_if_cancelled()

    task = asyncio.create_task(swallow())
    await asyncio.sleep(0)
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task
    raise_if_cancelled()
