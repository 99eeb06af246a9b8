"""The finite number of encrypted guests that the host's firmware carries: one locked file per guest.

A slot is held by an open file description that QEMU itself inherits. So the kernel frees it when the guest ends,
however it ends.
"""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .kind import POOLS


class NoSlotError(Exception):
    """Every slot of the pool is held by a guest."""


class Slots:
    """The slots below ``directory``; ``capacity`` counts them per pool, ``shown`` is the directory of misc.*."""

    def __init__(self, directory: Path, capacity: dict[str, int], shown: Path) -> None:
        self._directory = directory
        self._capacity = capacity
        self._shown = shown

    def take(self, pool: str, guest: dict[str, object]) -> tuple[int, int]:
        """Hold a slot of ``pool`` for as long as the returned descriptor is open anywhere.

        Returns the descriptor and the guest's handle, a number never given twice. Raises ``NoSlotError``.
        """
        with self._locked():
            for number in range(1, self._capacity.get(pool, 0) + 1):
                descriptor = self._open(pool, number)
                if _lock(descriptor):
                    handle = self._next_handle()
                    os.ftruncate(descriptor, 0)
                    os.pwrite(descriptor, json.dumps({**guest, "handle": handle}).encode(), 0)
                    self._show()
                    return descriptor, handle
                os.close(descriptor)
        raise NoSlotError(pool)

    def used(self, pool: str) -> int:
        """How many slots of ``pool`` are held now."""
        with self._locked():
            return self._count(pool)

    def show(self) -> None:
        """Write ``misc.capacity`` and ``misc.current`` as the kernel would show them now."""
        with self._locked():
            self._show()

    def _show(self) -> None:
        current = {pool: self._count(pool) for pool in POOLS}
        for name, numbers in (("misc.capacity", self._capacity), ("misc.current", current)):
            new = self._shown / f".{name}.new"
            new.write_text("".join(f"{pool} {numbers.get(pool, 0)}\n" for pool in POOLS))
            new.replace(self._shown / name)

    def _count(self, pool: str) -> int:
        held = 0
        for number in range(1, self._capacity.get(pool, 0) + 1):
            descriptor = self._open(pool, number)
            held += not _lock(descriptor)
            os.close(descriptor)
        return held

    def _open(self, pool: str, number: int) -> int:
        return os.open(self._directory / f"{pool}.{number}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def _next_handle(self) -> int:
        path = self._directory / "handle"
        try:
            handle = int(path.read_text()) + 1
        except (FileNotFoundError, ValueError):
            handle = 1
        path.write_text(str(handle))
        return handle

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Alone with the slots: counting locks each for a moment, and must not make a start find none free."""
        descriptor = os.open(self._directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
