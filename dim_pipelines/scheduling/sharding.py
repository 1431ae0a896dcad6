"""How rows are cut: into shards, and within a shard into the grid of micro-batches.

The grid is part of a result's identity: floating-point kernels give other bits for other batch sizes, so
rows go in order, `batch_rows` at a time, and the last micro-batch is filled up instead of being smaller.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Final

ASSUMED_ROWS_PER_S: Final = 512
"""Rows per second that a model of unknown speed is taken to compute when nobody says better."""
SHARD_SECONDS: Final = 2.0
"""Work in a shard whose size is chosen here: short enough to lose, long enough to hide a round trip."""
SHARD_BYTES: Final = 8 << 20
"""Input bytes that a shard whose size is chosen here should not exceed."""
BATCH_ROWS: Final = 32
"""Rows of a micro-batch when the spec names none."""


def choose_batch_rows(stated: int | None, max_batch_rows: int) -> int:
    """Give the rows of a micro-batch: what the spec states, else `BATCH_ROWS`, never more than the model takes."""
    return min(stated or BATCH_ROWS, max_batch_rows)


def choose_shard_rows(stated: int | None, batch_rows: int, row_bytes: float, rows_per_s: float | None = None) -> int:
    """Give the rows of a shard: what the spec states, else about `SHARD_SECONDS` of work.

    A chosen size is at most what fits `SHARD_BYTES` and a whole number of micro-batches, at least one. It
    depends on `row_bytes`, which is seen in the first rows: a batch that must be reproducible states its size.

    Args:
        stated: `shard_rows` of the spec.
        batch_rows: rows of a micro-batch.
        row_bytes: mean bytes of a row in the first rows read.
        rows_per_s: measured speed where one is known.
    """
    if stated:
        return stated
    rows = SHARD_SECONDS * (rows_per_s or ASSUMED_ROWS_PER_S)
    rows = min(rows, SHARD_BYTES / max(row_bytes, 1.0))
    return max(int(rows) // batch_rows, 1) * batch_rows


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """One call of the model.

    Attributes:
        rows: the shard's rows whose outputs are kept, in order; bad rows are left out.
        take: `batch_rows` row positions to feed: the kept rows in their places, copies of a good row elsewhere.
        keep: for each of `rows`, its place in `take`.
    """

    rows: tuple[int, ...]
    take: tuple[int, ...]
    keep: tuple[int, ...]


def grid(rows: int, batch_rows: int, bad: Collection[int] = ()) -> Iterator[MicroBatch]:
    """Cut a shard into micro-batches of exactly `batch_rows` rows.

    A row's place never moves because of other rows: a bad row's place, and the places after the last row,
    are filled with copies of the micro-batch's first good row. A micro-batch without a good row is left out.

    Args:
        rows: rows of the shard.
        batch_rows: rows of a micro-batch, 1 or more.
        bad: positions of rows that must not reach the model.
    """
    for start in range(0, rows, batch_rows):
        here = range(start, min(start + batch_rows, rows))
        if not bad:
            whole = tuple(here)
            yield MicroBatch(whole, whole + (start,) * (batch_rows - len(whole)), tuple(range(len(whole))))
            continue
        good = tuple(row for row in here if row not in bad)
        if not good:
            continue
        keep = tuple(row - start for row in good)
        take = [good[0]] * batch_rows
        for place, row in zip(keep, good, strict=True):
            take[place] = row
        yield MicroBatch(good, tuple(take), keep)
