"""Wait in a test for what happens in another thread or process."""

import time
from collections.abc import Callable


def until(true: Callable[[], object], seconds: float = 5.0) -> None:
    """Return as soon as `true()` holds; fail if it does not within so many seconds."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)
