"""A batch over scripted nodes, with everything but Dagster and SQL real."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dim_pipelines.content.ingest import Ingested, ingest
from dim_pipelines.content.manifest import read_result, shards
from dim_pipelines.content.memory import MemoryContentStore
from dim_pipelines.content.models import ModelPackage, add_model
from dim_pipelines.content.shards import decode_shard
from dim_pipelines.content.store import ContentStore
from dim_pipelines.content.unixfs import read_bytes
from dim_pipelines.dispatch.head import Batch, Finished, Progress
from dim_pipelines.dispatch.node_pool import NodePool
from dim_pipelines.dispatch.run import run
from dim_pipelines.domain.batch import BatchSpec
from dim_pipelines.domain.cid import Cid
from dim_pipelines.testing.batches import MemoryBatchHead
from dim_pipelines.testing.scripted_node import Faults, ScriptedNode


async def until(condition: Callable[[], object], timeout_s: float = 60.0) -> None:
    """Wait for what nobody announces."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - it watches what sets no event
            await asyncio.sleep(0.01)


@dataclass
class Bench:
    """One batch and what it needs."""

    folder: Path
    store: ContentStore
    batch: Batch
    models: list[ModelPackage]
    ingested: Ingested
    rows: int
    head: MemoryBatchHead
    key: Ed25519PrivateKey
    nodes: list[ScriptedNode] = field(default_factory=list)
    progress: list[Progress] = field(default_factory=list)
    moved: asyncio.Event = field(default_factory=asyncio.Event)

    def listen(self, progress: Progress) -> None:
        self.progress.append(progress)
        self.moved.set()

    async def reached(self, shards: int) -> None:
        """Wait until so many shards are done."""
        while not self.progress or self.progress[-1].shards_done < shards:
            self.moved.clear()
            await self.moved.wait()

    async def node(self, name: str, faults: Faults | None = None, **options: object) -> ScriptedNode:
        node = ScriptedNode(name, faults, **options)  # type: ignore[arg-type]
        await node.start()
        self.nodes.append(node)
        return node

    def together(self, *nodes: ScriptedNode) -> None:
        """Let no task begin before each of these nodes has got one: then each of them computes a share."""
        gate, without = asyncio.Event(), {node.name for node in nodes}

        def note(name: str) -> None:
            without.discard(name)
            if not without:
                gate.set()

        for node in nodes:
            node.faults.gate = gate
            node.on_task = lambda task, name=node.name: note(name)

    async def run(
        self, *nodes: ScriptedNode, head: MemoryBatchHead | None = None, pool: NodePool | None = None
    ) -> Finished:
        pool = pool or NodePool([node.address for node in nodes or self.nodes])
        try:
            return await run(
                self.batch,
                self.ingested.dataset,
                self.models,
                source="rows.csv",
                errors=None,
                store=self.store,
                head=head or self.head,
                pool=pool,
                key=self.key,
                write_ahead=self.folder / "write-ahead",
                progress=self.listen,
                holder="test",
            )
        finally:
            await pool.close()

    async def answers(self, result: Cid) -> list[tuple[int, str]]:
        """Read every row of a result in order."""
        root = await read_result(self.store, result)
        rows: list[tuple[int, str]] = []
        async for _, cid, count in shards(self.store, root):
            batch = decode_shard(await read_bytes(self.store, cid))
            assert batch.num_rows == count
            rows += zip(batch.column(0).to_pylist(), batch.column(1).to_pylist(), strict=True)
        return rows

    async def check(self, finished: Finished) -> None:
        """Every row exactly once, with the right answer."""
        assert await self.answers(finished.result) == [(row, f"{row}!") for row in range(self.rows)]


Make = Callable[..., Awaitable[Bench]]


@pytest.fixture
async def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Make]:
    monkeypatch.setattr("dim_pipelines.dispatch.batch_run.PROGRESS_S", 0.0)  # `reached` sees every shard
    benches: list[Bench] = []

    async def build(
        rows: int = 100, shard_rows: int = 2, *, store: ContentStore | None = None, text: str = "x", **spec: object
    ) -> Bench:
        chosen = store or MemoryContentStore()
        key = Ed25519PrivateKey.generate()
        package = tmp_path / "model"
        package.mkdir(exist_ok=True)
        (package / "dim-model.json").write_text(
            json.dumps(
                {
                    "v": 1,
                    "name": "scripted",
                    "version": "1",
                    "engine": "echo",
                    "inputs": [{"name": "text", "datatype": "BYTES", "shape": []}],
                    "outputs": [{"name": "text", "datatype": "BYTES", "shape": []}],
                    "licence": "Apache-2.0",
                }
            )
        )
        model = await add_model(package, chosen, key, "local")
        source = tmp_path / "rows.parquet"
        pa.parquet.write_table(pa.table({"text": [f"{text}{row}" for row in range(rows)]}), source)
        read = BatchSpec.read(
            {
                "name": "test",
                "models": [str(model.cid)],
                "input": str(source),
                "shard_rows": shard_rows,
                "batch_rows": 2,
                **spec,
            }
        )
        batch = Batch("b1", "local", read)
        ingested = await ingest(read, [model], chosen, owner="local", batch="b1")
        bench = Bench(tmp_path, chosen, batch, [model], ingested, rows, MemoryBatchHead("b1"), key)
        benches.append(bench)
        return bench

    yield build
    for bench in benches:
        for node in bench.nodes:
            await node.kill()
