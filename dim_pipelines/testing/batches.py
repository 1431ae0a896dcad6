"""The batch's row in memory."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from dim_pipelines.dispatch.head import Head
from dim_pipelines.domain.cid import Cid
from dim_pipelines.errors import InputError, StaleEpoch


@dataclass(slots=True)
class MemoryRow:
    """What the row holds; attributes as of `orchestrator.batches.BatchRow`."""

    epoch: int = 0
    holder: str | None = None
    head: Cid | None = None
    numerics: str | None = None
    result: Cid | None = None
    provenance: Cid | None = None
    beats: int = 0


class MemoryBatchHead:
    """Implements `dispatch.head.BatchHead` for any number of batches; passes the same suite as the SQL one.

    Attributes:
        rows: the rows by batch id.
    """

    def __init__(self, *batches: str) -> None:
        """Make rows for these batches."""
        self.rows = {batch: MemoryRow() for batch in batches}
        self._lock = threading.Lock()

    def take_epoch(self, batch: str, holder: str) -> Head:
        """Raise the epoch by one; see `BatchHead`."""
        with self._lock:
            row = self._row(batch)
            row.epoch += 1
            row.holder = holder
            return Head(row.epoch, row.head, row.numerics)

    def keep_numerics(self, batch: str, epoch: int, numerics: str) -> None:
        """Store the numerics class; see `BatchHead`."""
        with self._lock:
            self._fenced(batch, epoch).numerics = numerics

    def heartbeat(self, batch: str, epoch: int) -> None:
        """Count a sign of life; see `BatchHead`."""
        with self._lock:
            self._fenced(batch, epoch)

    def move_head(self, batch: str, epoch: int, head: Cid) -> None:
        """Move the journal's head; see `BatchHead`."""
        with self._lock:
            self._fenced(batch, epoch).head = head

    def finish(self, batch: str, epoch: int, result: Cid, provenance: Cid) -> None:
        """Store the result; see `BatchHead`."""
        with self._lock:
            row = self._fenced(batch, epoch)
            row.result, row.provenance = result, provenance

    def _row(self, batch: str) -> MemoryRow:
        try:
            return self.rows[batch]
        except KeyError:
            raise InputError(f"there is no batch {batch!r}") from None

    def _fenced(self, batch: str, epoch: int) -> MemoryRow:
        row = self._row(batch)
        if row.epoch != epoch:
            raise StaleEpoch(f"batch {batch}: a newer run than epoch {epoch} has taken over")
        row.beats += 1
        return row
