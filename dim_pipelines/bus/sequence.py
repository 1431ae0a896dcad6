"""Numbers that only grow: Unix milliseconds, or one more than the last where the clock stands still or went back."""

from __future__ import annotations

import time
from collections.abc import Callable


class Sequence:
    """The sequence of one sender in one process."""

    def __init__(self, clock_ms: Callable[[], int] | None = None) -> None:
        """Take Unix time in milliseconds."""
        self._clock_ms = clock_ms or (lambda: time.time_ns() // 1_000_000)
        self._last = 0

    def next(self) -> int:
        """Give the next number."""
        self._last = max(self._clock_ms(), self._last + 1)
        return self._last
