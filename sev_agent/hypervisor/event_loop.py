"""libvirt's own event loop, in one thread of its own."""

import functools
import threading
import time
from typing import ClassVar

import libvirt  # noqa: TID251 - this package is the one that may

_TURN_MS = 1000
"""The loop turns at least this often, so that a watchdog can tell an idle thread from a stuck one."""

_STUCK_AFTER = 5.0


class EventLoop:
    """The thread in which libvirt calls back: events, keepalive, closed connections.

    It must run before the first connection is opened. libvirt has one such loop in a process; starting a second
    raises ``RuntimeError``.
    """

    _in_process: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self) -> None:
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None
        self._timer = -1
        self._turned = 0.0

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs and has turned within the last seconds."""
        running = self._thread is not None and self._thread.is_alive()
        return running and time.monotonic() - self._turned < _STUCK_AFTER

    def start(self) -> None:
        if not self._in_process.acquire(blocking=False):
            raise RuntimeError("libvirt's event loop already runs in this process; share its Hypervisor")
        _register_once()
        self._ending.clear()
        self._turned = time.monotonic()
        self._timer = libvirt.virEventAddTimeout(_TURN_MS, self._beat, None)
        # A daemon thread: a callback that never returns must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name="libvirt-events", daemon=True)
        self._thread.start()

    def stop(self, timeout: float = 2.0) -> bool:
        """End the thread within ``timeout`` seconds. False if it is stuck; it is then left behind."""
        if self._thread is None:
            return True
        self._ending.set()
        libvirt.virEventUpdateTimeout(self._timer, 0)
        self._thread.join(timeout)
        if self._thread.is_alive():
            return False
        self._thread = None
        self._in_process.release()
        return True

    def _run(self) -> None:
        while not self._ending.is_set():
            libvirt.virEventRunDefaultImpl()
            self._turned = time.monotonic()
        # libvirt frees what was removed (a closed connection's socket) in the turns after the removal.
        for _ in range(2):
            libvirt.virEventRunDefaultImpl()
        libvirt.virEventRemoveTimeout(self._timer)

    def _beat(self, _timer: int, _opaque: None) -> None:
        self._turned = time.monotonic()


@functools.cache
def _register_once() -> None:
    """Registering twice would replace the loop's wake-up pipe under a thread that polls it."""
    libvirt.virEventRegisterDefaultImpl()
    # Without a handler libvirt prints every error to stderr, also the ones that are expected and handled.
    libvirt.registerErrorHandler(_swallow, None)


def _swallow(_context: None, _error: tuple[object, ...]) -> None:
    """The same error is raised as ``libvirtError`` where it happens."""
