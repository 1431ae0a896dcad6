"""What a session has waiting on a node: its tasks in order, their bytes as they arrive, and its share.

A lane is only state; `runner` takes from it, `work` fills it.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from dim_pipelines.domain.events import RowError, Task
from dim_pipelines.errors import DimError
from dim_pipelines.node.arbitration import Candidate
from dim_pipelines.node.plans import ReadyStep

FRAME_MS: Final = 20.0
"""Short tasks go to the engine together, about this much work at a time."""
FRAME_TASKS: Final = 32
FRAME_BYTES: Final = 16 << 20
_MEAN_WEIGHT: Final = 0.2

TaskKey = tuple[int, int, int]
"""(shard, step, attempt)."""


@dataclass(slots=True, eq=False)
class Item:
    """A task on this node.

    Attributes:
        data: the input shard, once it is here.
        error: why it will not be.
        cancelled: it has been answered already; what the engine makes of it is dropped.
        alone: an engine process died with it beside others: next time it goes alone.
    """

    task: Task
    data: bytes | None = None
    error: DimError | None = None
    cancelled: bool = False
    alone: bool = False

    @property
    def key(self) -> TaskKey:
        """Name the attempt."""
        return (self.task.shard, self.task.step, self.task.attempt)

    @property
    def ready(self) -> bool:
        """Tell whether it can be computed, or failed."""
        return self.data is not None or self.error is not None


@dataclass(frozen=True, slots=True)
class Computed:
    """What became of an item: the output shard, or the error."""

    item: Item
    output: bytes | None = None
    rows: int = 0
    row_errors: tuple[RowError, ...] = ()
    compute_us: int = 0
    peak_bytes: int = 0
    error: DimError | None = None
    handed_back: bool = False


_numbers = itertools.count(1)


@dataclass(slots=True, eq=False)
class Lane:
    """One session's tasks.

    Attributes:
        owner, weight: whose batch it is and its share among that owner's.
        steps: the plan's steps, ready.
        deliver: is given what was computed, in the event loop; must not block.
        mean_ms: recent mean of a task's time; None before the first.
    """

    owner: str
    weight: int
    steps: Sequence[ReadyStep]
    deliver: Callable[[list[Computed]], None]
    number: int = field(default_factory=lambda: next(_numbers))
    mean_ms: float | None = None
    waiting: deque[Item] = field(default_factory=deque)

    def candidate(self) -> Candidate | None:
        """Describe the lane to the arbiter; None when nothing can be computed now."""
        while self.waiting and self.waiting[0].cancelled:
            self.waiting.popleft()
        if not self.waiting or not self.waiting[0].ready:
            return None
        return Candidate(self.number, self.owner, self.weight, self.steps[self.waiting[0].task.step].key)

    def take(self) -> list[Item]:
        """Take what goes to the engine together: one step's tasks in order, as many as their length allows."""
        first = self.waiting[0]
        most = 1 if self.mean_ms is None else max(1, min(FRAME_TASKS, int(FRAME_MS / max(self.mean_ms, 0.01))))
        taken: list[Item] = []
        size = 0
        while self.waiting and len(taken) < most:
            item = self.waiting[0]
            if item.cancelled:
                self.waiting.popleft()
                continue
            size += len(item.data or b"")
            together = item.ready and item.task.step == first.task.step and not (first.alone or item.alone)
            if taken and (not together or size > FRAME_BYTES):
                break
            taken.append(self.waiting.popleft())
        return taken

    def put_back(self, items: Iterable[Item]) -> None:
        """Put items before all others."""
        self.waiting.extendleft(reversed(list(items)))

    def took(self, mean_ms: float) -> None:
        """Learn how long a task took; the slow first ones are forgotten as soon as faster ones come."""
        old = self.mean_ms
        self.mean_ms = mean_ms if old is None or mean_ms < old / 2 else old + _MEAN_WEIGHT * (mean_ms - old)
