"""A process that takes a million shards through a manifest or a journal and says what it cost.

Usage: python million_shards.py manifest|journal embedded|kubo FOLDER|ADDRESS SHARDS
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dim_pipelines.content.embedded import EmbeddedContentStore
from dim_pipelines.content.kubo import KuboContentStore
from dim_pipelines.content.manifest import ShardWriter, read_dataset, shards, write_root
from dim_pipelines.content.store import ContentStore, Pin
from dim_pipelines.dispatch.head import Batch
from dim_pipelines.dispatch.journal import SEGMENT_OUTCOMES, Journal, JournalWriter, read_journal
from dim_pipelines.dispatch.write_ahead import WriteAhead
from dim_pipelines.domain.batch import BatchSpec
from dim_pipelines.domain.cid import RAW, Cid
from dim_pipelines.domain.dataset import Column, Dataset
from dim_pipelines.domain.events import ShardDone, Usage
from dim_pipelines.testing.batches import MemoryBatchHead

PIN = Pin("local", "batch/million")
_START = bytes((1, RAW)) + b"\x12\x20"


def raw_cid(number: int) -> bytes:
    return _START + number.to_bytes(32, "big")


def peak_mib() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("/proc/self/status has no VmHWM")


async def manifest(store: ContentStore, count: int) -> dict[str, Any]:
    writer = ShardWriter(store, pin=PIN)
    for number in range(count):
        await writer.add(Cid(raw_cid(number)), 32)
    pages = await writer.close()
    columns = (Column(name="row", type="int64"),)
    root = Dataset(columns=columns, rows=writer.rows, shards=writer.shards, shard_rows=32, pages=pages)
    cid = await write_root(store, root)
    read = 0
    async for index, shard, rows in shards(store, await read_dataset(store, cid)):
        if shard != raw_cid(index) or rows != 32 or index != read:
            raise RuntimeError(f"shard {index} came back as {shard} with {rows} rows")
        read += 1
    return {"root": str(cid), "pages": len(pages), "read": read}


class NoWriteAhead(WriteAhead):
    """The file on the worker's own disk takes no memory, and its time is measured elsewhere."""

    def append(self, outcomes: Sequence[ShardDone]) -> None:
        """Write nothing."""


async def journal(store: ContentStore, folder: Path, count: int) -> dict[str, Any]:
    batch = Batch("million", "local", BatchSpec.read({"name": "x", "models": ["m"], "input": "i"}))
    row = MemoryBatchHead(batch.id)
    epoch = row.take_epoch(batch.id, "test").epoch
    work = Cid(raw_cid(0))
    writer = JournalWriter(
        store,
        row,
        batch,
        epoch,
        work,
        journal=Journal(),
        write_ahead=NoWriteAhead(folder, batch.id, epoch, work),
        pin=PIN,
    )
    usage = Usage(32, 1000, 100, 5, 0)
    for start in range(0, count, SEGMENT_OUTCOMES):
        numbers = range(start, start + SEGMENT_OUTCOMES)
        await writer.append([ShardDone(number, Cid(raw_cid(number)), 32, "node", usage) for number in numbers])
        await writer.commit()
    head = writer.head
    del writer
    read = await read_journal(store, head, batch=batch.id, owner=batch.owner)
    return {"root": str(head), "pages": len(read.segments), "read": len(read.done)}


async def main(what: str, kind: str, where: str, number: str) -> None:
    store: ContentStore
    if kind == "embedded":
        store = await EmbeddedContentStore.open(Path(where) / "store")
    else:
        store = await KuboContentStore.connect(where)
    began = time.monotonic()
    if what == "manifest":
        done = await manifest(store, int(number))
    else:
        done = await journal(store, Path(where) / "write-ahead", int(number))
    await store.close()
    print(json.dumps(done | {"peak_mib": peak_mib(), "seconds": time.monotonic() - began}))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
