"""A few rows of a result beside their inputs, for people; reads a bounded number of blocks of any batch."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa

from dim_pipelines.content.store import ContentStore
from dim_pipelines.content.tables import read_shard
from dim_pipelines.domain.cid import Cid
from dim_pipelines.domain.dataset import Dataset, PageEntry, Result, ShardPage

MAX_COUNTED_SHARDS: Final = 200
"""How many output shards are read to count labels."""
MAX_LABELS: Final = 20
"""A column with more distinct values than this is not shown as labels."""
_AHEAD: Final = 16


@dataclass(frozen=True, slots=True)
class ShardEntry:
    """A shard of a manifest: its position, its CID and its rows."""

    index: int
    cid: Cid
    rows: int


@dataclass(frozen=True, slots=True)
class Sample:
    """What a person looks at.

    Attributes:
        rows: the first rows, joined: id, input columns that are not binary, outputs.
        tiles: binary input values from all over the batch with a caption made of their outputs.
        label: the output column that was counted; empty where none has few distinct values.
        counts: value → rows of that column, in order of value.
        counted_rows: how many rows were counted.
    """

    rows: list[dict[str, Any]]
    tiles: list[tuple[bytes, str]]
    label: str
    counts: dict[str, float]
    counted_rows: int


def spread(count: int, limit: int) -> list[int]:
    """Choose at most `limit` of `count` positions, evenly spaced and with the first among them."""
    taken = min(count, limit)
    return [position * count // taken for position in range(taken)] if taken else []


async def read_entries(store: ContentStore, pages: Sequence[PageEntry], positions: Iterable[int]) -> list[ShardEntry]:
    """Look up shards of a manifest by position, reading only the pages that list them.

    Args:
        store: where the pages are.
        pages: the pages of a `Dataset` or `Result`.
        positions: ascending.
    """
    entries: list[ShardEntry] = []
    number, first = 0, 0
    open_page: tuple[int, ShardPage] | None = None
    for position in positions:
        while position >= first + pages[number].items:
            first += pages[number].items
            number += 1
        if open_page is None or open_page[0] != number:
            open_page = (number, ShardPage.decode(await store.get(pages[number].page)))
        cid, rows = open_page[1].shards[position - first]
        entries.append(ShardEntry(position, cid, rows))
    return entries


async def read_shards(
    store: ContentStore, entries: Sequence[ShardEntry]
) -> AsyncIterator[tuple[ShardEntry, pa.RecordBatch]]:
    """Read shards in the given order, `_AHEAD` at a time; every block is verified against its CID.

    Raises:
        InputError: a shard is malformed.
        ContentError: a block cannot be read.
    """
    for start in range(0, len(entries), _AHEAD):
        window = entries[start : start + _AHEAD]
        for entry, batch in zip(window, await asyncio.gather(*(read_shard(store, e.cid) for e in window)), strict=True):
            yield entry, batch


async def read_sample(
    store: ContentStore, dataset: Dataset, result: Result, *, rows: int = 8, tiles: int = 12
) -> Sample:
    """Read the first rows, some images and the labels' distribution of a result.

    Args:
        store: where both are.
        dataset: the inputs.
        result: the outputs; shard i belongs to input shard i.
        rows: how many joined rows to give.
        tiles: how many binary input values to give.

    Raises:
        ContentError: a block cannot be read.
    """
    first_rows: list[dict[str, Any]] = []
    shown: list[tuple[bytes, str]] = []
    looked_at = spread(min(dataset.shards, result.shards), 4)
    inputs = await read_entries(store, dataset.pages, looked_at)
    outputs = await read_entries(store, result.pages, looked_at)
    share = -(-tiles // max(1, len(looked_at)))
    answers_of = {entry.index: batch.to_pylist() async for entry, batch in read_shards(store, outputs)}
    async for source, given in read_shards(store, inputs):
        answers = answers_of[source.index]
        key = dataset.columns[0].name
        wanted = given.slice(0, max(rows, share)).to_pylist()
        by_id = {answer[result.columns[0].name]: answer for answer in answers}
        joined = [(row, by_id[row[key]]) for row in wanted if row[key] in by_id]
        if source.index == 0:
            first_rows = [_join(row, answer) for row, answer in joined[:rows]]
        for row, answer in joined[:share]:
            binary = next((value for value in row.values() if isinstance(value, bytes)), None)
            if binary is not None and len(shown) < tiles:
                shown.append((binary, caption(list(answer.values())[1:])))
    label, counts, counted = await _count_labels(store, result)
    return Sample(first_rows, shown, label, counts, counted)


def caption(values: Sequence[Any]) -> str:
    """Write the first two plain values of an output row: `7 · 0.98`."""
    return " · ".join(short(value) for value in values if not isinstance(value, (list, bytes, dict)))[:40]


def short(value: Any) -> str:
    """Write a value so that it fits a table's cell."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, bytes):
        return f"{len(value):,} bytes"
    if isinstance(value, list):
        inner = ", ".join(short(item) for item in value[:4])
        return f"[{inner}, … {len(value)} values]" if len(value) > 4 else f"[{inner}]"
    text = " ".join(str(value).split())
    return text if len(text) <= 60 else text[:59] + "…"


def to_markdown(rows: Sequence[dict[str, Any]]) -> str:
    """Write rows as a Markdown table; `no rows` when there are none."""
    if not rows:
        return "no rows"
    names = list(rows[0])
    lines = [_cells(names), _cells(["---"] * len(names))]
    lines += [_cells([short(row.get(name)) for name in names]) for row in rows]
    return "\n".join(lines)


def _cells(texts: Sequence[str]) -> str:
    return "| " + " | ".join(text.replace("|", "\\|") for text in texts) + " |"


def _join(row: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
    joined = {name: value for name, value in row.items() if not isinstance(value, bytes)}
    joined.update(list(answer.items())[1:])
    return joined


async def _count_labels(store: ContentStore, result: Result) -> tuple[str, dict[str, float], int]:
    """Count the values of the first output column that has few, over shards from all over the result."""
    names = [column.name for column in result.columns[1:] if column.type in _LABEL_TYPES]
    counters: dict[str, Counter[Any]] = {name: Counter() for name in names}
    counted = 0
    entries = await read_entries(store, result.pages, spread(result.shards, MAX_COUNTED_SHARDS)) if names else []
    async for _, batch in read_shards(store, entries):
        counted += batch.num_rows
        for name, counter in list(counters.items()):
            counter.update(batch.column(name).to_pylist())
            if len(counter) > MAX_LABELS:
                del counters[name]
    for name, counter in counters.items():
        ordered = sorted(counter.items(), key=lambda item: (item[0] is None, item[0]))
        return name, {short(value): float(number) for value, number in ordered}, counted
    return "", {}, 0


_LABEL_TYPES: Final = frozenset(
    {"bool", "string", "large_string"} | {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
)
