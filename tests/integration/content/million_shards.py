"""A process that takes a million shards through a manifest and says what it cost.

Usage: python million_shards.py embedded FOLDER | kubo ADDRESS
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
import time
from pathlib import Path

from dim_pipelines.content.embedded import EmbeddedContentStore
from dim_pipelines.content.kubo import KuboContentStore
from dim_pipelines.content.manifest import ShardWriter, read_dataset, shards, write_root
from dim_pipelines.content.store import ContentStore
from dim_pipelines.domain.cid import RAW, Cid
from dim_pipelines.domain.dataset import Column, Dataset

SHARDS = 1_000_000
_START = bytes((1, RAW)) + b"\x12\x20"


def cid_of(number: int) -> Cid:
    return Cid(_START + hashlib.blake2b(number.to_bytes(8, "big"), digest_size=32).digest())


def peak_mib() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("/proc/self/status has no VmHWM")


async def open_named(kind: str, where: str) -> ContentStore:
    return await (EmbeddedContentStore.open(Path(where)) if kind == "embedded" else KuboContentStore.connect(where))


async def main(kind: str, where: str) -> None:
    store = await open_named(kind, where)
    began = time.monotonic()
    writer = ShardWriter(store)
    for number in range(SHARDS):
        await writer.add(cid_of(number), 32)
    pages = await writer.close()
    columns = (Column(name="row", type="int64"),)
    root = Dataset(columns=columns, rows=writer.rows, shards=writer.shards, shard_rows=32, pages=pages)
    cid = await write_root(store, root)
    written = time.monotonic()
    count = 0
    async for index, shard, _ in shards(store, await read_dataset(store, cid)):
        assert shard == cid_of(index)
        count += 1
    done = time.monotonic()
    await store.close()
    print(
        json.dumps(
            {
                "dataset": str(cid),
                "pages": len(pages),
                "read": count,
                "peak_mib": peak_mib(),
                "write_s": written - began,
                "read_s": done - written,
            }
        )
    )


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
