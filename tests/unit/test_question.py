"""Questions to what may never answer: nobody waits for it without end, and the process ends without it."""

import asyncio
import subprocess
import sys
import threading

import pytest

from sev_agent.question import Question

PATIENCE = 60.0

_NEVER_ANSWERED = """
import asyncio, threading
from sev_agent.question import Question

async def main():
    begun = threading.Event()

    def hang():
        begun.set()
        threading.Event().wait()

    question = Question(hang, name="hangs", limit=0.01)
    try:
        await question.answer()
    except TimeoutError as error:
        print(error)
    assert begun.wait(60)

asyncio.run(main())
"""


async def test_answer() -> None:
    """What comes back is what was asked for, each time anew."""
    numbers = iter(range(2))
    question = Question(lambda: next(numbers), name="count", limit=PATIENCE)

    assert [await question.answer(), await question.answer()] == [0, 1]


async def test_error() -> None:
    """What went wrong is the asker's to know, and the next question is a new one."""
    faults = iter([OSError("gone")])

    def ask() -> str:
        for fault in faults:
            raise fault
        return "back"

    question = Question(ask, name="ask", limit=PATIENCE)

    with pytest.raises(OSError, match="gone"):
        await question.answer()
    assert await question.answer() == "back"


async def test_one_at_a_time() -> None:
    """Whoever asks meanwhile, also after the limit or one who gave up, waits for the same answer: one thread hangs."""
    may_answer = threading.Event()
    asked: list[None] = []

    def ask() -> int:
        asked.append(None)
        may_answer.wait(PATIENCE)
        return len(asked)

    question = Question(ask, name="slow", limit=0.01)
    for _ in range(2):
        with pytest.raises(TimeoutError, match=r"no answer within 0.01 s"):
            await question.answer()
    question._limit = PATIENCE
    impatient = asyncio.create_task(question.answer())
    await asyncio.sleep(0)
    impatient.cancel()
    with pytest.raises(asyncio.CancelledError):
        await impatient
    waiting = [asyncio.create_task(question.answer()) for _ in range(3)]
    await asyncio.sleep(0)
    may_answer.set()

    assert await asyncio.gather(*waiting) == [1, 1, 1]


def test_end_does_not_wait() -> None:
    """A process whose question is never answered ends all the same."""
    ended = subprocess.run(
        [sys.executable, "-c", _NEVER_ANSWERED], capture_output=True, text=True, timeout=PATIENCE, check=False
    )

    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "no answer within 0.01 s\n", "")
