"""Samples of a result: bounded, joined by id, spread over the whole."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dim_pipelines.assets.sampling import caption, read_entries, read_sample, short, spread, to_markdown
from dim_pipelines.content.manifest import ShardWriter, shards, write_root
from dim_pipelines.content.memory import MemoryContentStore
from dim_pipelines.content.shards import columns_of, encode_shard
from dim_pipelines.content.unixfs import add_bytes
from dim_pipelines.domain.cid import DAG_CBOR, Cid
from dim_pipelines.domain.dataset import Dataset, PageEntry, Result


async def _write(store: MemoryContentStore, tables: list[pa.Table], page_bytes: int = 400) -> tuple[PageEntry, ...]:
    writer = ShardWriter(store, page_bytes)
    for table in tables:
        await writer.add(await add_bytes(store, encode_shard(table)), table.num_rows)
    return await writer.close()


async def _batch(store: MemoryContentStore, inputs: list[pa.Table], outputs: list[pa.Table]) -> tuple[Dataset, Result]:
    dataset = Dataset(
        columns=columns_of(inputs[0].schema),
        rows=sum(table.num_rows for table in inputs),
        shards=len(inputs),
        shard_rows=inputs[0].num_rows,
        pages=await _write(store, inputs),
    )
    await write_root(store, dataset)
    result = Result(
        work=Cid.of(DAG_CBOR, b"work"),
        columns=columns_of(outputs[0].schema),
        rows=sum(table.num_rows for table in outputs),
        shards=len(outputs),
        pages=await _write(store, outputs),
    )
    return dataset, result


def _images(first: int, rows: int) -> pa.Table:
    ids = list(range(first, first + rows))
    return pa.table({"row": ids, "image": [f"image {i}".encode() for i in ids], "place": [f"p{i}" for i in ids]})


def _labels(first: int, rows: int, missing: int | None = None) -> pa.Table:
    ids = [i for i in range(first, first + rows) if i != missing]
    return pa.table(
        {
            "row": ids,
            "scores": [[0.25, 0.75]] * len(ids),
            "label": pa.array([i % 3 for i in ids], pa.int64()),
            "confidence": pa.array([0.5] * len(ids), pa.float32()),
        }
    )


async def test_rows_are_joined_by_id_without_binary_columns() -> None:
    store = MemoryContentStore()
    dataset, result = await _batch(store, [_images(0, 4), _images(4, 4)], [_labels(0, 4, missing=1), _labels(4, 4)])
    sample = await read_sample(store, dataset, result, rows=3)

    assert [row["row"] for row in sample.rows] == [0, 2, 3]
    assert sample.rows[1] == {"row": 2, "place": "p2", "scores": [0.25, 0.75], "label": 2, "confidence": 0.5}


async def test_tiles_come_from_the_whole_batch_with_their_predictions() -> None:
    store = MemoryContentStore()
    dataset, result = await _batch(store, [_images(8 * i, 8) for i in range(8)], [_labels(8 * i, 8) for i in range(8)])
    sample = await read_sample(store, dataset, result, tiles=4)

    assert sample.tiles == [
        (b"image 0", "0 · 0.5"),
        (b"image 16", "1 · 0.5"),
        (b"image 32", "2 · 0.5"),
        (b"image 48", "0 · 0.5"),
    ]


async def test_labels_are_counted_over_all_rows() -> None:
    store = MemoryContentStore()
    dataset, result = await _batch(store, [_images(0, 7)], [_labels(0, 7)])
    sample = await read_sample(store, dataset, result)

    assert (sample.label, sample.counts, sample.counted_rows) == ("label", {"0": 3.0, "1": 2.0, "2": 2.0}, 7)


async def test_a_column_with_many_values_is_no_label() -> None:
    store = MemoryContentStore()
    ids = list(range(64))
    outputs = pa.table({"row": ids, "text": [f"text {i}" for i in ids]})
    dataset, result = await _batch(store, [_images(0, 64)], [outputs])
    sample = await read_sample(store, dataset, result)

    assert (sample.label, sample.counts) == ("", {})


async def test_entries_are_those_of_the_manifest_read_from_few_pages() -> None:
    store = MemoryContentStore()
    tables = [pa.table({"row": [i]}) for i in range(40)]
    dataset, _ = await _batch(store, tables, tables)
    listed = [(index, cid, rows) async for index, cid, rows in shards(store, dataset)]
    positions = [0, 1, 13, 14, 39]
    entries = await read_entries(store, dataset.pages, positions)

    assert len(dataset.pages) > 3
    assert [(entry.index, entry.cid, entry.rows) for entry in entries] == [listed[position] for position in positions]


@given(count=st.integers(0, 10**7), limit=st.integers(1, 500))
def test_a_spread_is_bounded_ascending_and_begins_at_the_first(count: int, limit: int) -> None:
    chosen = spread(count, limit)

    assert len(chosen) == min(count, limit)
    assert chosen == sorted(set(chosen))
    assert all(0 <= position < count for position in chosen)
    assert not chosen or chosen[0] == 0


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.123456, "0.1235"),
        (b"12345", "5 bytes"),
        ([1, 2], "[1, 2]"),
        ([1.0] * 10, "[1, 1, 1, 1, … 10 values]"),
        ("a\nb", "a b"),
        ("x" * 80, "x" * 59 + "…"),
        (None, "None"),
    ],
)
def test_values_are_short(value: object, text: str) -> None:
    assert short(value) == text


def test_a_caption_leaves_lists_out() -> None:
    assert caption([[1, 2], 7, 0.98765]) == "7 · 0.9877"


def test_markdown_escapes_what_would_end_a_cell() -> None:
    assert to_markdown([{"a": "x|y", "b": 1}]) == "| a | b |\n| --- | --- |\n| x\\|y | 1 |"
    assert to_markdown([]) == "no rows"


async def test_a_batch_whose_rows_are_all_dead_has_an_empty_sample() -> None:
    dataset = Dataset(columns=(), rows=0, shards=0, shard_rows=4, pages=(), dead_rows=3)
    result = Result(work=Cid.of(DAG_CBOR, b"work"), columns=(), rows=0, shards=0, pages=(), dead_rows=3)
    sample = await read_sample(MemoryContentStore(), dataset, result)

    assert (sample.rows, sample.tiles, sample.label, sample.counted_rows) == ([], [], "", 0)
