"""What a daemon does without."""

import contextlib
import sys
from collections.abc import Iterator
from typing import Final

_UNUSED: Final = ("rich", "greenlet")


@contextlib.contextmanager
def without_extras() -> Iterator[None]:
    """Keep what is imported meanwhile from loading rich and greenlet. Harmless where they are loaded already.

    structlog loads them where it finds them, the one to draw tracebacks, the other for a kind of threads. A daemon's
    tracebacks are plain, and it has no such threads: both, and pygments, would be 3 MiB that nothing in it uses.
    """
    for name in _UNUSED:
        # Python's own way to say that there is no such module (its reference, "The module cache").
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in _UNUSED:
            if sys.modules[name] is None:
                del sys.modules[name]
