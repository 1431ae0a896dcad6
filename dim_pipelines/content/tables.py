"""Datasets and results as streams of rows."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Final

import pyarrow as pa

from dim_pipelines.content.files import read_bytes
from dim_pipelines.content.manifest import shards
from dim_pipelines.content.shards import decode_shard
from dim_pipelines.content.store import ContentStore
from dim_pipelines.domain.cid import RAW, Cid
from dim_pipelines.domain.dataset import MAX_SHARD_BYTES, Dataset, Result
from dim_pipelines.errors import ContentMismatch

_AHEAD: Final = 64
"""Shards asked for at once: one remote block costs 40 ms, many at once hardly more."""
_AHEAD_BYTES: Final = 32 << 20


async def read_shard(store: ContentStore, cid: Cid) -> pa.RecordBatch:
    """Read one shard.

    Raises:
        InputError: the CID names no shard.
        ContentError: as `ContentStore.get`.
    """
    data = await store.get(cid) if cid.codec == RAW else await read_bytes(store, cid, limit=MAX_SHARD_BYTES)
    return await asyncio.to_thread(decode_shard, data)


async def read_rows(store: ContentStore, root: Dataset | Result) -> AsyncIterator[tuple[int, pa.RecordBatch]]:
    """Read the rows shard by shard: `(index, rows)` in order, fetched ahead.

    Raises:
        ContentMismatch: a shard does not hold as many rows as the manifest says.
        InputError: something in it is no shard.
        ContentError: as `ContentStore.get`.
    """
    window: list[tuple[int, Cid, int]] = []
    ahead = 1
    async for entry in shards(store, root):
        window.append(entry)
        if len(window) < ahead:
            continue
        size = 0
        async for index, rows in _window(store, window):
            size += rows.nbytes
            yield index, rows
        # as wide as fits the bytes that the last shards took, so that large shards do not pile up
        ahead = max(1, min(_AHEAD, int(_AHEAD_BYTES / max(size / len(window), 1))))
        window = []
    async for index, rows in _window(store, window):
        yield index, rows


async def preview(store: ContentStore, root: Dataset | Result, rows: int) -> pa.Table:
    """Give the first rows.

    Raises: as `read_rows`.
    """
    batches: list[pa.RecordBatch] = []
    async for _, batch in read_rows(store, root):
        batches.append(batch.slice(0, rows))
        rows -= batch.num_rows
        if rows <= 0:
            break
    return pa.Table.from_batches(batches)


async def _window(
    store: ContentStore, entries: list[tuple[int, Cid, int]]
) -> AsyncIterator[tuple[int, pa.RecordBatch]]:
    """Read some shards: those of one block together, those of several blocks one by one."""
    single = store.get_many([cid for _, cid, _ in entries if cid.codec == RAW])
    for index, cid, rows in entries:
        if cid.codec == RAW:
            block = await anext(single)
            batch = await asyncio.to_thread(decode_shard, block.data)
        else:
            batch = await read_shard(store, cid)
        if batch.num_rows != rows:
            raise ContentMismatch(f"shard {index} has {batch.num_rows} rows, the manifest says {rows}")
        yield index, batch
