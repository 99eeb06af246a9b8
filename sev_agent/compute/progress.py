"""The steps of a build, each named, timed, and told as it ends."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum


class Step(StrEnum):
    """A step of a build. Each can be run again with the same outcome."""

    RECORD = "record"
    IMAGE = "image"
    CLAIM = "claim"
    CACHE = "cache"
    KERNEL = "kernel"
    DISK = "disk"
    CONFIG_DRIVE = "config_drive"
    FIRMWARE = "firmware"
    DEFINE = "define"
    START = "start"


class Progress:
    """How far one build is; ``on_step`` is told each step that ended well, with its seconds."""

    def __init__(self, on_step: Callable[[Step, float], None]) -> None:
        self._on_step = on_step
        self._under_way: list[Step] = []
        self._failed: Step | None = None

    @property
    def under_way(self) -> tuple[Step, ...]:
        """The steps at work now; some run side by side."""
        return tuple(self._under_way)

    @property
    def failed(self) -> Step:
        """The step whose error ended the build; steps that were cancelled because of it are no cause."""
        return self._failed or Step.RECORD

    @contextmanager
    def step(self, step: Step) -> Iterator[None]:
        """Time the body as ``step``."""
        started = time.perf_counter()
        self._under_way.append(step)
        try:
            yield
        except Exception:
            self._failed = self._failed or step
            raise
        finally:
            self._under_way.remove(step)
        self._on_step(step, time.perf_counter() - started)
