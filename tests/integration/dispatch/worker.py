"""A run worker as a process of its own, to be killed: python worker.py HOME MODEL INPUT ADDRESS [BATCH]."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from dim_pipelines.content.embedded import EmbeddedContentStore
from dim_pipelines.content.ingest import ingest
from dim_pipelines.content.models import add_model
from dim_pipelines.database.engine import open_database
from dim_pipelines.dispatch.head import Progress
from dim_pipelines.dispatch.node_pool import NodePool
from dim_pipelines.dispatch.run import run
from dim_pipelines.domain.batch import BatchSpec
from dim_pipelines.identity.keys import load_or_create_key
from dim_pipelines.orchestrator.batches import Batches
from dim_pipelines.settings import Home


async def main(home: Home, model: Path, source: Path, addresses: str, batch: str) -> None:
    store = await EmbeddedContentStore.open(home.store)
    batches = Batches(open_database(home.database_url))
    key = load_or_create_key(home.user_key)
    package = await add_model(model, store, key, "local")
    spec = {"name": "t", "models": [str(package.cid)], "input": str(source), "shard_rows": 2, "batch_rows": 2}
    row = batches.submit(BatchSpec.read(spec), batch_id=batch)
    ingested = await ingest(row.spec, [package], store, owner="local", batch=batch)
    pool = NodePool(addresses.split(","))

    def tell(progress: Progress) -> None:
        print(json.dumps({"done": progress.shards_done}), flush=True)

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
        progress=tell,
        holder="worker",
    )
    print(
        json.dumps(
            {"result": str(finished.result), "resumed": finished.resumed_shards, "shards": finished.shards,
             "nodes": finished.nodes, "retries": finished.retries}
        ),
        flush=True,
    )  # fmt: skip
    await pool.close()
    await store.close()


if __name__ == "__main__":
    asyncio.run(main(Home.at(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4], sys.argv[5]))
