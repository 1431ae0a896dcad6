from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dim_pipelines.scheduling.sharding import (
    BATCH_ROWS,
    SHARD_BYTES,
    choose_batch_rows,
    choose_shard_rows,
    grid,
)


@pytest.mark.parametrize(
    ("stated", "most", "chosen"), [(None, 1024, BATCH_ROWS), (None, 8, 8), (5, 1024, 5), (64, 16, 16)]
)
def test_the_micro_batch_is_as_stated_and_never_larger_than_the_model_takes(
    stated: int | None, most: int, chosen: int
) -> None:
    assert choose_batch_rows(stated, most) == chosen


@pytest.mark.parametrize(
    ("stated", "row_bytes", "rows_per_s", "chosen"),
    [
        (7, 1.0, None, 7),
        (None, 100.0, None, 1024),  # two seconds at 512 rows a second
        (None, 100.0, 100.0, 192),  # 200 rows, down to whole micro-batches
        (None, SHARD_BYTES / 64, None, 64),
        (None, SHARD_BYTES * 2, None, 32),  # never less than one micro-batch
        (None, 0.0, None, 1024),
    ],
)
def test_a_shard_is_as_stated_or_about_two_seconds_of_work(
    stated: int | None, row_bytes: float, rows_per_s: float | None, chosen: int
) -> None:
    assert choose_shard_rows(stated, 32, row_bytes, rows_per_s) == chosen


rows = st.integers(0, 200)
sizes = st.integers(1, 40)


@given(rows, sizes, st.sets(st.integers(0, 200)))
def test_every_good_row_is_computed_once_and_no_bad_one_at_all(rows: int, size: int, bad: set[int]) -> None:
    batches = list(grid(rows, size, bad))
    kept = [row for batch in batches for row in batch.rows]
    assert kept == [row for row in range(rows) if row not in bad]
    assert all(row not in bad and row < rows for batch in batches for row in batch.take)


@given(rows, sizes, st.sets(st.integers(0, 200)))
def test_every_micro_batch_has_the_full_size(rows: int, size: int, bad: set[int]) -> None:
    for batch in grid(rows, size, bad):
        assert len(batch.take) == size
        assert [batch.take[place] for place in batch.keep] == list(batch.rows)


@given(rows, sizes, st.sets(st.integers(0, 200)))
def test_a_bad_row_never_moves_another(rows: int, size: int, bad: set[int]) -> None:
    clean = {row: (row // size, row % size) for row in range(rows)}
    for batch in grid(rows, size, bad):
        for row, place in zip(batch.rows, batch.keep, strict=True):
            assert clean[row] == (batch.rows[0] // size, place)


def test_the_last_micro_batch_is_filled_with_copies_of_its_first_good_row() -> None:
    (batch,) = grid(3, 5, {0})
    assert batch.take == (1, 1, 2, 1, 1)
    assert batch.rows == (1, 2)
    assert batch.keep == (1, 2)


def test_a_micro_batch_without_a_good_row_is_left_out() -> None:
    assert [batch.rows for batch in grid(6, 2, {2, 3})] == [(0, 1), (4, 5)]
