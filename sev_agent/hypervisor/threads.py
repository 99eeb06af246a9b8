"""A bounded set of threads for calls that may never return."""

import asyncio
import contextlib
import queue
import threading
import traceback
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from sev_agent.hypervisor.errors import HypervisorUnavailable, NoAnswer

T = TypeVar("T")


class CallThreads:
    """Runs blocking calls in at most ``size`` threads.

    Unlike ``ThreadPoolExecutor``'s, these are daemon threads: a call that hangs inside libvirt keeps neither its caller
    nor the end of the process waiting. The thread of an overdue call is lost until the call returns; ``overdue``
    counts those, and while no other thread is left, calls fail at once instead of queueing behind them.
    """

    def __init__(self, size: int, name: str) -> None:
        self._size = size
        self._name = name
        self._jobs: queue.SimpleQueue[_Job[Any] | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._waiting: set[_Job[Any]] = set()
        self._pending = 0
        self._overdue = 0
        self._closed: str | None = None

    @property
    def overdue(self) -> int:
        """Calls past their time limit that still hold a thread."""
        return self._overdue

    async def run(self, call: Callable[[], T], limit: float) -> T:
        """The outcome of ``call``, if it comes within ``limit`` seconds of waiting and running.

        Raises ``NoAnswer`` if it does not, ``HypervisorUnavailable`` once closed, and whatever ``call`` raises. A call
        that has not begun when the limit passes, or when the caller is cancelled, never begins.
        """
        if self._closed is not None:
            raise HypervisorUnavailable(self._closed)
        if self._overdue >= self._size:
            raise NoAnswer(
                f"all {self._size} threads wait for libvirt to answer", remedy="restart libvirtd if it stays so"
            )
        job = self._submit(call)
        try:
            async with asyncio.timeout(limit):
                return await job.answer
        except TimeoutError:
            if not self._withdraw(job):
                job.is_overdue = True
                self._overdue += 1
            raise NoAnswer(
                f"libvirt did not answer within {limit:g} s",
                remedy="look at what keeps libvirtd busy; the call may still take effect",
            ) from None
        except asyncio.CancelledError:
            self._withdraw(job)
            raise
        finally:
            self._waiting.discard(job)

    def close(self, reason: str) -> None:
        """Fail all who wait, now, with ``reason``; let each thread end after the call that it is in."""
        self._closed = reason
        for job in self._waiting:
            begun = not self._withdraw(job)
            remedy = "the outcome is unknown; read the domain's state once libvirt is back" if begun else "retry"
            job.settle(None, HypervisorUnavailable(f"{reason}, during the call" if begun else reason, remedy=remedy))
        for _ in self._threads:
            self._jobs.put(None)

    def _submit(self, call: Callable[[], T]) -> "_Job[T]":
        job: _Job[T] = _Job(call, self._returned)
        self._waiting.add(job)
        self._pending += 1
        if self._pending > len(self._threads) < self._size:
            name = f"{self._name}-{len(self._threads)}"
            thread = threading.Thread(target=_work, args=(self._jobs,), name=name, daemon=True)
            self._threads.append(thread)
            thread.start()
        self._jobs.put(job)
        return job

    def _withdraw(self, job: "_Job[Any]") -> bool:
        """Whether ``job`` had not begun; then it never will."""
        withdrawn = job.take()
        if withdrawn:
            self._pending -= 1
        return withdrawn

    def _returned(self, job: "_Job[Any]") -> None:
        self._pending -= 1
        if job.is_overdue:
            self._overdue -= 1


class _Job(Generic[T]):
    """One call on its way through a thread and back."""

    def __init__(self, call: Callable[[], T], on_return: Callable[["_Job[T]"], None]) -> None:
        self._call = call
        self._on_return = on_return
        self._loop = asyncio.get_running_loop()
        self._taken = threading.Lock()
        self.answer: asyncio.Future[T] = self._loop.create_future()
        self.is_overdue = False

    def take(self) -> bool:
        """Claim it, to perform it or to see to it that nobody does. The first claim wins."""
        return self._taken.acquire(blocking=False)

    def perform(self) -> None:
        """In a thread: call, and take the outcome to the loop."""
        if not self.take():
            return
        result: T | None = None
        fault: BaseException | None = None
        try:
            result = self._call()
        except BaseException as error:  # noqa: BLE001 - it is the caller's
            _empty_frames(error)
            fault = error
        with contextlib.suppress(RuntimeError):  # the loop has closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._return, result, fault)

    def settle(self, result: Any, fault: BaseException | None) -> None:
        """Answer the caller, unless that was done or nobody waits."""
        if self.answer.done():
            return
        if fault is None:
            self.answer.set_result(result)
        else:
            self.answer.set_exception(fault)

    def _return(self, result: Any, fault: BaseException | None) -> None:
        self._on_return(self)
        self.settle(result, fault)


def _empty_frames(error: BaseException) -> None:
    """Let go of what was in hand where ``error`` and those before it came through: it would live as long as they do.

    A domain of libvirt's keeps its connection open.
    """
    each: BaseException | None = error
    while each is not None:
        traceback.clear_frames(each.__traceback__)
        each = each.__context__


def _work(jobs: "queue.SimpleQueue[_Job[Any] | None]") -> None:
    while (job := jobs.get()) is not None:
        job.perform()
        del job  # an idle thread must keep no connection or domain alive
