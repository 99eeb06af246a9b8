"""One at a time for each instance."""

import asyncio
from uuid import UUID
from weakref import WeakValueDictionary


class InstanceLocks:
    """A lock for each UUID, kept for as long as somebody holds it or waits for it."""

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[UUID, asyncio.Lock] = WeakValueDictionary()

    def __len__(self) -> int:
        return len(self._locks)

    def of(self, uuid: UUID) -> asyncio.Lock:
        """The lock of ``uuid``: the same for all who want it at one time."""
        return self._locks.setdefault(uuid, asyncio.Lock())
