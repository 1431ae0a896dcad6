"""Processes that are killed: the run worker in mid-batch, and one of two real nodes."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from dim_pipelines.content.embedded import EmbeddedContentStore
from dim_pipelines.content.manifest import read_result, shards
from dim_pipelines.content.shards import decode_shard
from dim_pipelines.content.unixfs import read_bytes
from dim_pipelines.database.engine import open_database
from dim_pipelines.dispatch.journal import read_journal
from dim_pipelines.dispatch.write_ahead import read_write_ahead
from dim_pipelines.domain.cid import Cid
from dim_pipelines.identity.keys import format_public_key, load_or_create_key, public_bytes
from dim_pipelines.node.process import NodeProcess
from dim_pipelines.orchestrator.batches import Batches
from dim_pipelines.settings import Home
from dim_pipelines.testing.scripted_node import Faults, ScriptedNode

from .conftest import until

WORKER = Path(__file__).with_name("worker.py")
MODEL = {
    "v": 1,
    "name": "echo",
    "version": "1",
    "engine": "echo",
    "inputs": [{"name": "x", "datatype": "INT64", "shape": []}],
    "outputs": [{"name": "x", "datatype": "INT64", "shape": []}],
    "licence": "Apache-2.0",
}


class Place:
    """A home, a model and an input."""

    def __init__(self, folder: Path, rows: int) -> None:
        self.home = Home.at(folder / "home")
        self.rows = rows
        self.model, self.source = folder / "model", folder / "rows.parquet"
        self.model.mkdir()
        (self.model / "dim-model.json").write_text(json.dumps(MODEL))
        pa.parquet.write_table(pa.table({"x": pa.array(range(rows), pa.int64())}), self.source)

    @asynccontextmanager
    async def worker(self, addresses: str, batch: str = "b1") -> AsyncIterator[asyncio.subprocess.Process]:
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(WORKER), str(self.home.root), str(self.model), str(self.source), addresses, batch,
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        try:
            yield process
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()

    async def rows_of(self, result: str) -> list[tuple[Any, ...]]:
        store = await EmbeddedContentStore.open(self.home.store)
        try:
            rows: list[tuple[Any, ...]] = []
            async for _, cid, _ in shards(store, await read_result(store, Cid.parse(result))):
                batch = decode_shard(await read_bytes(store, cid))
                rows += zip(*(column.to_pylist() for column in batch.columns), strict=True)
            return rows
        finally:
            await store.close()

    async def kept(self, batch: str = "b1") -> set[int]:
        """Read which shards the journal and the write-ahead file hold."""
        store = await EmbeddedContentStore.open(self.home.store)
        database = open_database(self.home.database_url)
        try:
            row = Batches(database).get(batch)
            journal = await read_journal(store, row.head, batch=batch, owner="local")
            assert journal.work is not None
            outcomes, _ = read_write_ahead(self.home.write_ahead, batch, journal.work)
            return {*journal.done, *(each.shard for each in outcomes)}
        finally:
            database.close()
            await store.close()


async def lines(process: asyncio.subprocess.Process) -> AsyncIterator[dict[str, Any]]:
    assert process.stdout is not None
    async for line in process.stdout:
        yield json.loads(line)


async def last(process: asyncio.subprocess.Process) -> dict[str, Any]:
    found: dict[str, Any] = {}
    async for line in lines(process):
        found = line
    assert await process.wait() == 0
    return found


async def test_a_killed_run_worker_computes_nothing_twice_that_it_had_kept(tmp_path: Path) -> None:
    place = Place(tmp_path, 600)
    node = ScriptedNode("a", Faults(delay_s=0.05), credit=4)  # 80 shards a second: a segment comes first
    await node.start()
    try:
        async with place.worker(node.address) as worker:
            async for line in lines(worker):
                if line.get("done", 0) >= 130:  # past the first segment, and not at the end of one
                    worker.kill()
                    break
            assert await worker.wait() == -9
        kept = await place.kept()
        assert 130 <= len(kept) < 300
        await until(lambda: node.sessions == 0)
        before = len(node.computed)
        node.faults = Faults()
        async with place.worker(node.address) as worker:
            resumed = await last(worker)
        again = node.computed[before:]
        assert resumed["resumed"] == len(kept)
        assert not set(again) & kept
        assert sorted(again) == sorted(set(range(300)) - kept)
        assert await place.rows_of(resumed["result"]) == [(row, f"{row}!") for row in range(600)]
        async with place.worker(node.address, "b2") as worker:
            fresh = await last(worker)
        assert (fresh["result"], fresh["resumed"]) == (resumed["result"], 0)
    finally:
        await node.kill()


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path, 1000)


async def test_one_of_two_real_nodes_is_killed_in_mid_batch(place: Place, tmp_path: Path) -> None:
    trust = format_public_key(public_bytes(load_or_create_key(place.home.user_key)))
    nodes = [
        await asyncio.to_thread(NodeProcess.start, tmp_path / name, name=name, trust=[trust], engines=["echo"])
        for name in ("one", "two")
    ]
    try:
        async with place.worker(",".join(node.address for node in nodes)) as worker:
            finished: dict[str, Any] = {}
            killed = False
            async for line in lines(worker):
                if line.get("done", 0) > 50 and not killed:
                    killed = True
                    await asyncio.to_thread(nodes[0].kill)
                finished = line
            assert await worker.wait() == 0
        assert killed
        assert sum(finished["nodes"].values()) == finished["shards"] == 500
        assert await place.rows_of(finished["result"]) == [(row, row) for row in range(1000)]
        async with place.worker(nodes[1].address, "b2") as worker:
            fresh = await last(worker)
        assert fresh["result"] == finished["result"]
        assert fresh["nodes"] == {"two": 500}
    finally:
        for node in nodes:
            await asyncio.to_thread(node.kill)
