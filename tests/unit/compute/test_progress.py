"""The steps of a build: which are under way, which ended, which one failed."""

import asyncio

import pytest

from sev_agent.compute.progress import Progress, Step


@pytest.fixture
def ended() -> list[tuple[Step, float]]:
    return []


@pytest.fixture
def progress(ended: list[tuple[Step, float]]) -> Progress:
    return Progress(lambda step, seconds: ended.append((step, seconds)))


def test_steps(progress: Progress, ended: list[tuple[Step, float]]) -> None:
    """A step is under way while it is, and told with its time when it ended."""
    with progress.step(Step.CLAIM):
        with progress.step(Step.DISK):
            assert list(progress.under_way) == [Step.CLAIM, Step.DISK]
        assert list(progress.under_way) == [Step.CLAIM]

    assert not progress.under_way
    assert [step for step, _ in ended] == [Step.DISK, Step.CLAIM]
    assert all(seconds >= 0 for _, seconds in ended)


def test_failed_step(progress: Progress, ended: list[tuple[Step, float]]) -> None:
    """The first step that fails is the cause, and no failed step counts as ended."""
    for step in (Step.CACHE, Step.DISK):
        with pytest.raises(ValueError, match="oops"), progress.step(step):
            raise ValueError("oops")

    assert progress.failed is Step.CACHE
    assert not progress.under_way
    assert not ended


def test_cancelled_step(progress: Progress) -> None:
    """A step that is cancelled because of another is no cause."""
    with pytest.raises(asyncio.CancelledError), progress.step(Step.CLAIM):
        raise asyncio.CancelledError
    with pytest.raises(ValueError, match="oops"), progress.step(Step.DISK):
        raise ValueError("oops")

    assert progress.failed is Step.DISK


def test_failure_before_any_step(progress: Progress) -> None:
    """What fails before the first step fails at the record."""
    assert progress.failed is Step.RECORD
