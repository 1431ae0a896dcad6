"""What a batch sees of each node's work, for the nodes' reputations."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from dim_pipelines.scheduling.reputation import Seen


@dataclass(slots=True)
class _Counts:
    since: float
    good: int = 0
    bad: int = 0
    late: int = 0
    rows: int = 0
    last: str = ""


class Tallies:
    """Counts by node name since they were last taken."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin; `clock` gives seconds."""
        self._clock = clock
        self._counts: dict[str, _Counts] = {}

    def begin(self, node: str) -> None:
        """Note that a node is used from now on."""
        self._of(node)

    def good(self, node: str, rows: int) -> None:
        """Count an accepted output."""
        counts = self._of(node)
        counts.good += 1
        counts.rows += rows

    def bad(self, node: str, why: str) -> None:
        """Count a failure that is the node's fault."""
        counts = self._of(node)
        counts.bad += 1
        counts.last = why

    def late(self, node: str, why: str) -> None:
        """Count a lateness."""
        counts = self._of(node)
        counts.late += 1
        counts.last = why

    def take(self) -> dict[str, Seen]:
        """Give the counts and begin anew."""
        now = self._clock()
        taken = {
            name: Seen(each.good, each.bad, each.late, each.rows, now - each.since, each.last)
            for name, each in self._counts.items()
            if each.good or each.bad or each.late
        }
        self._counts = {name: _Counts(now) for name in self._counts}
        return taken

    def _of(self, node: str) -> _Counts:
        found = self._counts.get(node)
        if found is None:
            found = self._counts[node] = _Counts(self._clock())
        return found
