"""Questions to what may never answer: a device that hangs, a disk on the network that is away."""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from functools import partial
from typing import Generic, TypeVar

T = TypeVar("T")


class Question(Generic[T]):
    """Asks by ``ask``, which blocks, and waits ``limit`` seconds at most for what it returns or raises.

    It is asked in a daemon thread of its own: unlike ``asyncio.to_thread``'s, the end of the process does not wait for
    it. One is asked at a time, whoever wants to know: so what hangs holds one thread, however often it is asked.
    """

    def __init__(self, ask: Callable[[], T], *, name: str, limit: float) -> None:
        self._ask = ask
        self._name = name
        self._limit = limit
        self._asked: asyncio.Future[T] | None = None

    async def answer(self) -> T:
        """The answer; one that did not come in time is waited for again the next time.

        Raises ``TimeoutError`` where none comes in time, and what ``ask`` raises.
        """
        asked = self._asked
        if asked is None:
            asked = self._asked = self._put()
        done, _ = await asyncio.wait({asked}, timeout=self._limit)
        if not done:
            raise TimeoutError(f"no answer within {self._limit:g} s")
        if self._asked is asked:
            self._asked = None
        return asked.result()

    def _put(self) -> asyncio.Future[T]:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()

        def work() -> None:
            settle: Callable[[], None]
            try:
                settle = partial(answer.set_result, self._ask())
            except BaseException as error:  # noqa: BLE001 - it is the asker's
                settle = partial(answer.set_exception, error)
            with contextlib.suppress(RuntimeError):  # the loop has closed: nobody waits any more
                loop.call_soon_threadsafe(settle)

        threading.Thread(target=work, name=self._name, daemon=True).start()
        return answer
