"""What a daemon does without."""

import contextlib
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def without_rich() -> Iterator[None]:
    """Keep what is imported meanwhile from loading rich. Harmless where that is loaded already.

    structlog does so where it finds it, to draw tracebacks. A daemon's are plain: rich and pygments would be 3 MiB that
    nothing in it uses.
    """
    # Python's own way to say that there is no such module (its reference, "The module cache").
    sys.modules.setdefault("rich", None)  # type: ignore[arg-type]
    try:
        yield
    finally:
        if sys.modules["rich"] is None:
            del sys.modules["rich"]
