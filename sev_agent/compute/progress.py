"""The steps of a build and of its undoing, each named, timed, and told as it ends."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import Final

from sev_agent.crash_points import CrashPoint, reached


class Step(StrEnum):
    """A step of a build, or of what undoes one. Each can be run again with the same outcome."""

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
    DESTROY = "destroy"
    UNDEFINE = "undefine"
    FILES = "files"
    RELEASE = "release"


_BOUNDARIES: Final = {
    Step.RECORD: (CrashPoint.ACCEPT_BEFORE_SAVE, CrashPoint.ACCEPT_AFTER_SAVE),
    Step.IMAGE: (CrashPoint.BUILD_BEFORE_IMAGE, CrashPoint.BUILD_AFTER_IMAGE),
    Step.CLAIM: (CrashPoint.BUILD_BEFORE_CLAIM, CrashPoint.BUILD_AFTER_CLAIM),
    Step.CACHE: (CrashPoint.BUILD_BEFORE_CACHE, CrashPoint.BUILD_AFTER_CACHE),
    Step.KERNEL: (CrashPoint.BUILD_BEFORE_KERNEL, CrashPoint.BUILD_AFTER_KERNEL),
    Step.DISK: (CrashPoint.BUILD_BEFORE_DISK, CrashPoint.BUILD_AFTER_DISK),
    Step.CONFIG_DRIVE: (CrashPoint.BUILD_BEFORE_CONFIG_DRIVE, CrashPoint.BUILD_AFTER_CONFIG_DRIVE),
    Step.FIRMWARE: (CrashPoint.BUILD_BEFORE_NVRAM, CrashPoint.BUILD_AFTER_NVRAM),
    Step.DEFINE: (CrashPoint.BUILD_BEFORE_DEFINE, CrashPoint.BUILD_AFTER_DEFINE),
    Step.START: (CrashPoint.BUILD_BEFORE_START, CrashPoint.BUILD_AFTER_START),
    Step.DESTROY: (CrashPoint.UNDO_BEFORE_DESTROY, CrashPoint.UNDO_AFTER_DESTROY),
    Step.UNDEFINE: (CrashPoint.UNDO_BEFORE_UNDEFINE, CrashPoint.UNDO_AFTER_UNDEFINE),
    Step.FILES: (CrashPoint.UNDO_BEFORE_FILES, CrashPoint.UNDO_AFTER_FILES),
    Step.RELEASE: (CrashPoint.UNDO_BEFORE_RELEASE, CrashPoint.UNDO_AFTER_RELEASE),
}


class Progress:
    """How far one piece of work is; ``on_step`` is told each step that ended well, with its seconds."""

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
        """The step whose error ended the work; steps that were cancelled because of it are no cause."""
        return self._failed or Step.RECORD

    @contextmanager
    def step(self, step: Step) -> Iterator[None]:
        """Time the body as ``step``."""
        before, after = _BOUNDARIES[step]
        started = time.perf_counter()
        self._under_way.append(step)
        try:
            reached(before)
            yield
            reached(after)
        except Exception:
            self._failed = self._failed or step
            raise
        finally:
            self._under_way.remove(step)
        self._on_step(step, time.perf_counter() - started)
