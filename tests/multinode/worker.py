"""A run worker that tells what it does: `python worker.py ROWS SLEEP_MS [SHARD_ROWS]` in a DIM_HOME.

It runs an echo batch of ROWS rows over the nodes of the home's network; each micro-batch takes SLEEP_MS. It prints a
JSON object a line, each with the time `at` (Unix seconds): {"taken": shard, "node"}: a task went to a node; {"done":
shard}: its output was accepted; {"progress": shards}; and at the end {"result", "rows", "nodes", "right"}, where
`right` tells whether every row is there exactly once with its answer.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Collection
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from dim_pipelines.content.ingest import ingest
from dim_pipelines.content.manifest import read_result, shards
from dim_pipelines.content.models import add_model
from dim_pipelines.content.open import open_store
from dim_pipelines.content.shards import decode_shard
from dim_pipelines.content.store import ContentStore
from dim_pipelines.content.unixfs import read_bytes
from dim_pipelines.database.engine import open_database
from dim_pipelines.dispatch.head import Progress
from dim_pipelines.dispatch.open_pool import open_pool
from dim_pipelines.dispatch.run import run
from dim_pipelines.domain.batch import BatchSpec
from dim_pipelines.domain.cid import Cid
from dim_pipelines.identity.keys import load_or_create_key
from dim_pipelines.orchestrator.batches import Batches
from dim_pipelines.scheduling.assignment import Assigned, Assignment
from dim_pipelines.settings import Home

MODEL = {
    "v": 1,
    "name": "echo",
    "version": "1",
    "engine": "echo",
    "inputs": [{"name": "x", "datatype": "INT64", "shape": []}],
    "outputs": [{"name": "y", "datatype": "INT64", "shape": []}],
    "licence": "Apache-2.0",
}


def tell(**what: Any) -> None:
    print(json.dumps({"at": time.time(), **what}), flush=True)


def listen() -> None:
    """Tell of every task that goes out and of every output that is accepted."""
    take, done = Assignment.take, Assignment.done

    def told_take(self: Assignment, node: str, n: int, now: float) -> list[Assigned]:
        tasks = take(self, node, n, now)
        for task in tasks:
            tell(taken=task.shard, node=node)
        return tasks

    def told_done(self: Assignment, shard: int) -> Any:
        tell(done=shard)
        return done(self, shard)

    Assignment.take = told_take  # type: ignore[method-assign]
    Assignment.done = told_done  # type: ignore[method-assign]


async def main(rows: int, sleep_ms: float, shard_rows: int) -> None:
    home = Home.at()
    store = await open_store("embedded", home)
    batches = Batches(open_database(home.database_url))
    model = home.root / "echo-model"
    model.mkdir(exist_ok=True)
    (model / "dim-model.json").write_text(json.dumps(MODEL))
    source = home.root / f"rows-{rows}.parquet"
    pa.parquet.write_table(pa.table({"x": pa.array(range(rows), pa.int64())}), source)
    key = load_or_create_key(home.user_key)
    package = await add_model(model, store, key, "local")
    uses = [{"model": str(package.cid), "parameters": {"sleep_ms": sleep_ms}}]
    size = {"shard_rows": shard_rows, "batch_rows": shard_rows}
    row = batches.submit(BatchSpec.read({"name": "told", "models": uses, "input": str(source), **size}))
    ingested = await ingest(row.spec, [package], store, owner="local", batch=row.id)
    pool = await open_pool(home)
    listen()
    try:
        finished = await run(
            row.batch,
            ingested.dataset,
            [package],
            source=str(source),
            errors=None,
            store=store,
            head=batches,
            pool=pool,
            key=key,
            write_ahead=home.write_ahead,
            progress=_progress,
            holder="worker",
        )
        right = await _is_right(store, finished.result, rows)
        tell(
            batch=row.id, result=str(finished.result), rows=finished.rows, nodes=dict(finished.nodes),
            seconds=finished.seconds, right=right,
        )  # fmt: skip
    finally:
        await pool.close()
        await store.close()


def _progress(progress: Progress) -> None:
    tell(progress=progress.shards_done)


async def _is_right(store: ContentStore, result: Cid, rows: int) -> bool:
    found: list[Collection[Any]] = []
    async for _, cid, _ in shards(store, await read_result(store, result)):
        batch = decode_shard(await read_bytes(store, cid))
        found += zip(*(column.to_pylist() for column in batch.columns), strict=True)
    return sorted(found) == [(row, row) for row in range(rows)]


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 2))
