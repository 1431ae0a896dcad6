"""What happened to tasks: tasks, outcomes, usage, and the journal segments that keep them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Final

from dim_pipelines.domain.cid import Cid
from dim_pipelines.domain.format import Format

CHECKPOINT_EVERY: Final = 64
"""Every how many segments a checkpoint lists all before it."""
INDEX_PAGE_SEGMENTS: Final = 4096
"""How many segments one index page lists."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What a task cost, in integers.

    Attributes:
        rows: rows computed.
        bytes_in, bytes_out: bytes of the input and output shards.
        compute_ms: milliseconds in the engine.
        peak_bytes: peak bytes of device memory, 0 where unknown.
    """

    rows: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    compute_ms: int = 0
    peak_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Task:
    """One step of one shard, one attempt.

    Attributes:
        shard: the shard's position in the dataset.
        step: the step's position in the plan.
        inputs: CIDs of the input shards.
        input_rows: rows of the input.
        attempt: 1 for the first try; a hedge copy counts as an attempt.
        deadline_ms: Unix time in milliseconds after which nobody wants the output; 0: none.
    """

    shard: int
    step: int
    inputs: tuple[Cid, ...]
    input_rows: int
    attempt: int = 1
    deadline_ms: int = 0


@dataclass(frozen=True, slots=True)
class RowError:
    """A row that failed in the engine: position within the shard, and the reason."""

    row: int
    reason: str


@dataclass(frozen=True, slots=True)
class TaskDone:
    """A node finished a task: the output shard is in the node's store."""

    shard: int
    step: int
    attempt: int
    output: Cid
    rows: int
    usage: Usage = field(default_factory=Usage)
    row_errors: tuple[RowError, ...] = ()


@dataclass(frozen=True, slots=True)
class TaskFailed:
    """A node could not finish a task: `code` is a code of `errors`, `handed_back` says that it was never started."""

    shard: int
    step: int
    attempt: int
    code: str
    message: str
    retryable: bool
    handed_back: bool = False


@dataclass(frozen=True, slots=True)
class ShardDone:
    """A shard is done: its output was fetched back, checked and stored.

    Attributes:
        node: the name of the node that computed it.
    """

    shard: int
    output: Cid
    rows: int
    node: str
    usage: Usage


class Segment(Format):
    """Outcomes of at most one second or 1,000 shards.

    Attributes:
        number: 0 for a batch's first segment.
        previous: the segment before this one.
        checkpoint: the newest checkpoint before this one.
        nodes: node names; an outcome names its node by position here.
        outcomes: per shard `(shard, output, rows, node, rows computed, bytes in, bytes out, compute ms, peak bytes)`.
    """

    kind_name: ClassVar[str] = "dim/segment"
    batch: str
    owner: str
    epoch: int
    number: int
    work: Cid
    previous: Cid | None = None
    checkpoint: Cid | None = None
    nodes: list[str]
    outcomes: list[tuple[int, Cid, int, int, int, int, int, int, int]]


class SegmentIndex(Format):
    """A sealed page of `INDEX_PAGE_SEGMENTS` segments in order."""

    kind_name: ClassVar[str] = "dim/segment-index"
    segments: list[Cid]


class Checkpoint(Format):
    """All segments before number `count`: sealed index pages, then the rest one by one."""

    kind_name: ClassVar[str] = "dim/checkpoint"
    count: int
    sealed: list[Cid]
    tail: list[Cid]
