"""A bounded set of threads for calls that may never return."""

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from sev_agent.hypervisor.errors import HypervisorUnavailable

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
        self._pending = 0
        self._overdue = 0

    @property
    def overdue(self) -> int:
        """Calls past their time limit that still hold a thread."""
        return self._overdue

    async def run(self, call: Callable[[], T], limit: float) -> T:
        """The outcome of ``call``, if it comes within ``limit`` seconds of waiting and running.

        Raises ``HypervisorUnavailable`` if it does not, and whatever ``call`` raises. A call that has not begun when
        the limit passes, or when the caller is cancelled, never begins.
        """
        if self._overdue >= self._size:
            raise HypervisorUnavailable(
                f"all {self._size} threads wait for libvirt to answer", remedy="restart libvirtd if it stays so"
            )
        self._pending += 1
        if self._pending > len(self._threads) < self._size:
            self._add_thread()
        job: _Job[T] = _Job(call, self._finished)
        self._jobs.put(job)
        try:
            async with asyncio.timeout(limit):
                return await job.answer
        except TimeoutError:
            if job.withdraw():
                self._pending -= 1
            else:
                job.is_overdue = True
                self._overdue += 1
            raise HypervisorUnavailable(
                f"libvirt did not answer within {limit:g} s", remedy="look at what keeps libvirtd busy"
            ) from None
        except asyncio.CancelledError:
            if job.withdraw():
                self._pending -= 1
            raise

    def close(self) -> None:
        """Let the threads end, each after the call it is in. No call may follow."""
        for _ in self._threads:
            self._jobs.put(None)

    def _add_thread(self) -> None:
        name = f"{self._name}-{len(self._threads)}"
        thread = threading.Thread(target=_work, args=(self._jobs,), name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _finished(self, job: "_Job[Any]") -> None:
        self._pending -= 1
        if job.is_overdue:
            self._overdue -= 1


class _Job(Generic[T]):
    """One call on its way through a thread and back."""

    def __init__(self, call: Callable[[], T], on_finish: Callable[["_Job[T]"], None]) -> None:
        self._call = call
        self._on_finish = on_finish
        self._loop = asyncio.get_running_loop()
        self._taken = threading.Lock()
        self.answer: asyncio.Future[T] = self._loop.create_future()
        self.is_overdue = False

    def withdraw(self) -> bool:
        """Whether the call had not begun; then it never will."""
        return self._taken.acquire(blocking=False)

    def perform(self) -> None:
        """In a thread: call, and take the outcome to the loop."""
        if not self._taken.acquire(blocking=False):
            return
        result: T | None = None
        fault: BaseException | None = None
        try:
            result = self._call()
        except BaseException as error:  # noqa: BLE001 - it is the caller's
            fault = error
        with contextlib.suppress(RuntimeError):  # the loop has closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._settle, result, fault)

    def _settle(self, result: Any, fault: BaseException | None) -> None:
        self._on_finish(self)
        if self.answer.done():
            return
        if fault is None:
            self.answer.set_result(result)
        else:
            self.answer.set_exception(fault)


def _work(jobs: "queue.SimpleQueue[_Job[Any] | None]") -> None:
    while (job := jobs.get()) is not None:
        job.perform()
        del job  # an idle thread must keep no connection or domain alive
