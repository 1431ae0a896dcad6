"""What dispatch needs of a batch's row, and what it gives its callers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from dim_pipelines.domain.batch import BatchSpec
from dim_pipelines.domain.cid import Cid
from dim_pipelines.scheduling.ranking import Explained


@dataclass(frozen=True, slots=True)
class Batch:
    """A submitted batch: its id, its owner and its immutable spec."""

    id: str
    owner: str
    spec: BatchSpec


@dataclass(frozen=True, slots=True)
class Head:
    """What the row says once an epoch was taken.

    Attributes:
        epoch: the fencing number just taken; every later write carries it.
        head: CID of the newest journal segment, when there is one.
        numerics: the numerics class that the first plan chose, when there was one.
    """

    epoch: int
    head: Cid | None = None
    numerics: str | None = None


class BatchHead(Protocol):
    """The row of one batch, as dispatch uses it. `orchestrator/batches` implements it over SQL.

    Calls block for a few milliseconds at most; dispatch makes them in a thread.
    """

    def take_epoch(self, batch: str, holder: str) -> Head:
        """Raise the epoch by one in one statement and give the row: the only way to get an epoch."""
        ...

    def keep_numerics(self, batch: str, epoch: int, numerics: str) -> None:
        """Store the numerics class the first plan chose.

        Raises:
            StaleEpoch: a newer run has taken the batch.
        """
        ...

    def heartbeat(self, batch: str, epoch: int) -> None:
        """Say that the run lives.

        Raises:
            StaleEpoch: a newer run has taken the batch.
        """
        ...

    def move_head(self, batch: str, epoch: int, head: Cid) -> None:
        """Compare-and-set the journal's head on the epoch.

        Raises:
            StaleEpoch: a newer run has taken the batch.
        """
        ...

    def finish(self, batch: str, epoch: int, result: Cid, provenance: Cid) -> None:
        """Store the result: the batch is done.

        Raises:
            StaleEpoch: a newer run has taken the batch.
        """
        ...


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a batch is; given at most ten times a second, and once at the end.

    Attributes:
        nodes: node name → shards that are done there.
        waits: why nothing is computed at the moment, node by node; empty while a node works.
    """

    shards_done: int
    shards: int
    rows_done: int
    rows: int
    retries: int
    nodes: dict[str, int] = field(default_factory=dict)
    waits: str = ""


@dataclass(frozen=True, slots=True)
class Finished:
    """A finished batch.

    Attributes:
        nodes: node name → shards it computed in this run and those before it.
        resumed_shards: shards taken from the journal instead of computed.
        seconds: wall time of this run; `rows_per_s` counts only the rows computed in it.
        considered: every node of the pool as the run saw it last: why it was used, or not; empty where nothing was
            left to compute.
    """

    batch: str
    result: Cid
    dataset: Cid
    provenance: Cid
    rows: int
    dead_rows: int
    shards: int
    resumed_shards: int
    retries: int
    rows_per_s: float
    seconds: float
    nodes: dict[str, int]
    licences: tuple[str, ...]
    considered: tuple[Explained, ...] = ()


ProgressListener = Callable[[Progress], None]
"""Called in the event loop's thread; must not block."""
