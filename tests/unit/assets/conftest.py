"""A batch in a real table, with ingest, dispatch and join replaced by twins over an in-memory store."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import pytest

import dim_pipelines.assets.dataset as dataset_module
import dim_pipelines.assets.report as report_module
import dim_pipelines.assets.results as results_module
from dim_pipelines.assets.checks import result_is_retrievable, rows_in_equal_rows_out
from dim_pipelines.content.ingest import Ingested
from dim_pipelines.content.manifest import ShardWriter, write_root
from dim_pipelines.content.memory import MemoryContentStore
from dim_pipelines.content.shards import columns_of, encode_shard
from dim_pipelines.content.store import ContentStore
from dim_pipelines.content.unixfs import add_bytes
from dim_pipelines.database.engine import Database, open_database
from dim_pipelines.dispatch.head import Finished, Progress
from dim_pipelines.dispatch.portal import Portal
from dim_pipelines.domain.batch import BatchSpec
from dim_pipelines.domain.cid import RAW, Cid
from dim_pipelines.domain.dataset import Dataset, PageEntry, Result
from dim_pipelines.domain.work import ModelUse, Work
from dim_pipelines.orchestrator.batches import Batches
from dim_pipelines.resources.io_manager import CidIOManager
from dim_pipelines.settings import Home

BATCH = "b1"
SPEC = {"name": "digits", "models": ["digits"], "input": "/data/rows.csv", "shard_rows": 4, "batch_rows": 2}


@dataclass
class Machine:
    """The twins, what the next run does, and what was asked of it."""

    store: MemoryContentStore
    portal: Portal
    database: Database
    home: Home
    instance: dg.DagsterInstance
    shards: int = 3
    dead_rows: int = 0
    errors: Cid | None = None
    lost_rows: int = 0
    run_error: BaseException | None = None
    during_run: Callable[[], None] = lambda: None
    calls: list[dict[str, Any]] = field(default_factory=list)

    @property
    def batches(self) -> Batches:
        return Batches(self.database)

    def resources(self) -> dict[str, Any]:
        return {
            "home": self.home,
            "database": self.database,
            "portal": self.portal,
            "content_store": self.store,
            "node_pool": object(),
            "io_manager": CidIOManager(),
        }

    def materialize(self, *names: str, partition: str = BATCH) -> dg.ExecuteInProcessResult:
        everything = [
            dataset_module.dataset,
            results_module.results,
            report_module.report,
            rows_in_equal_rows_out,
            result_is_retrievable,
        ]
        return dg.materialize(
            everything,
            selection=list(names) or None,
            instance=self.instance,
            partition_key=partition,
            resources=self.resources(),
            raise_on_error=False,
        )

    def run_job(self, retries: dg.RetryPolicy) -> dg.ExecuteInProcessResult:
        """Run the batch as a job in which somebody has put a retry policy on every op."""
        defs = dg.Definitions(
            assets=[dataset_module.dataset, results_module.results, report_module.report],
            jobs=[dg.define_asset_job("batch", op_retry_policy=retries)],
            resources=self.resources(),
        )
        return defs.resolve_job_def("batch").execute_in_process(
            instance=self.instance, partition_key=BATCH, raise_on_error=False
        )

    def check(self, check: dg.AssetChecksDefinition) -> dg.AssetCheckEvaluation:
        """Run one check alone, without a partition."""
        result = dg.materialize(
            [dataset_module.dataset, results_module.results, check],
            selection=dg.AssetSelection.checks(check),
            instance=self.instance,
            resources=self.resources(),
            raise_on_error=False,
        )
        (evaluation,) = result.get_asset_check_evaluations()
        return evaluation


def _rows(shard: int) -> list[int]:
    return list(range(4 * shard, 4 * shard + 4))


async def _pages(store: ContentStore, tables: list[pa.Table]) -> tuple[PageEntry, ...]:
    writer = ShardWriter(store)
    for table in tables:
        await writer.add(await add_bytes(store, encode_shard(table)), table.num_rows)
    return await writer.close()


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    home = Home.at(tmp_path / "home")
    with Portal() as portal, dg.DagsterInstance.ephemeral() as instance:
        twin = Machine(MemoryContentStore(), portal, open_database(home.database_url), home, instance)
        twin.batches.submit(BatchSpec.read(SPEC), batch_id=BATCH)
        instance.add_dynamic_partitions("batches", [BATCH])

        async def find_model(reference: str, store: ContentStore, owner: str) -> str:
            return f"model {reference} of {owner}"

        async def ingest(spec: BatchSpec, models: Any, store: ContentStore, *, owner: str, batch: str) -> Any:
            twin.calls.append({"ingest": spec, "models": models, "owner": owner, "batch": batch})
            tables = [pa.table({"row": _rows(i), "x": [0.5 * row for row in _rows(i)]}) for i in range(twin.shards)]
            root = Dataset(
                columns=columns_of(tables[0].schema),
                rows=4 * twin.shards,
                shards=twin.shards,
                shard_rows=4,
                pages=await _pages(store, tables),
            )
            return Ingested(
                dataset=await write_root(store, root), root=root, source="/data/rows.csv", errors=twin.errors
            )

        async def run(batch: Any, dataset: Cid, models: Any, **arguments: Any) -> Finished:
            twin.calls.append({"run": batch, "dataset": dataset, "models": models, **arguments})
            store, head = arguments["store"], arguments["head"]
            taken = head.take_epoch(batch.id, arguments["holder"])
            arguments["progress"](Progress(1, twin.shards, 4, 4 * twin.shards, 0, {"node-a": 1}))
            twin.during_run()
            if twin.run_error is not None:
                raise twin.run_error
            work = Work(
                models=(ModelUse(model=Cid.of(RAW, b"model")),),
                pattern="collaborative",
                columns=("x",),
                batch_rows=2,
                numerics="test",
                dataset=dataset,
            )
            tables = [
                pa.table({"row": _rows(i), "label": pa.array([row % 2 for row in _rows(i)], pa.int64())})
                for i in range(twin.shards)
            ]
            if twin.lost_rows:
                tables[-1] = tables[-1].slice(0, 4 - twin.lost_rows)
            rows = sum(table.num_rows for table in tables)
            result = await write_root(
                store,
                Result(
                    work=await write_root(store, work),
                    columns=columns_of(tables[0].schema),
                    rows=rows,
                    shards=twin.shards,
                    pages=await _pages(store, tables),
                ),
            )
            provenance = Cid.of(RAW, b"provenance")
            head.finish(batch.id, taken.epoch, result, provenance)
            nodes = {"node-a": 2, "node-b": twin.shards - 2}
            return Finished(
                batch.id, result, dataset, provenance, rows, 0, twin.shards, 1, 0, 8.0, 0.5, nodes, ("Apache-2.0",)
            )

        async def join(
            result: Cid, dataset: Cid, spec: BatchSpec, store: ContentStore, path: Path, *, errors: Cid | None = None
        ) -> int:
            twin.calls.append({"join": result, "dataset": dataset, "path": path, "errors": errors})
            await asyncio.to_thread(path.write_bytes, b"joined")
            return 4 * twin.shards

        monkeypatch.setattr(dataset_module, "find_model", find_model)
        monkeypatch.setattr(dataset_module, "ingest", ingest)
        monkeypatch.setattr(results_module, "run", run)
        monkeypatch.setattr(report_module, "join", join)
        yield twin
        twin.database.close()
