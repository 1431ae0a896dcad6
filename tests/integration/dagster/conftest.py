"""A DIM_HOME with a signed model, rows, a real node daemon and a real Dagster instance on SQLite."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from dim_pipelines.content.embedded import EmbeddedContentStore
from dim_pipelines.content.models import ModelPackage, add_model
from dim_pipelines.database.engine import Database, open_database
from dim_pipelines.domain.model import DESCRIPTION_FILE, ModelDescription
from dim_pipelines.identity.keys import format_public_key, load_or_create_key, public_bytes
from dim_pipelines.node.process import NodeProcess
from dim_pipelines.orchestrator.batches import Batches, BatchRow, submit_batch
from dim_pipelines.orchestrator.dagster_daemon import add_partition, prepare_instance
from dim_pipelines.orchestrator.dagster_instance import dagster_environment
from dim_pipelines.settings import Home

ROOT = Path(__file__).parents[3]
ECHO = {
    "name": "echo",
    "version": "1",
    "engine": "echo",
    "inputs": [{"name": "x", "datatype": "FP32", "shape": []}],
    "outputs": [{"name": "y", "datatype": "FP32", "shape": []}],
    "licence": "Apache-2.0",
}


@dataclass
class Site:
    """One machine: its home, node, database and Dagster instance."""

    home: Home
    node: NodeProcess
    model: str
    rows: Path
    database: Database
    instance: dg.DagsterInstance

    @property
    def batches(self) -> Batches:
        return Batches(self.database)

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, **dagster_environment(self.home), "DIM_NODES": self.node.address, "COLUMNS": "200"}

    def submit(self, *, run: bool, sleep_ms: int = 0, shard_rows: int = 10) -> BatchRow:
        spec = {
            "name": "echoes",
            "models": [{"model": self.model, "parameters": {"sleep_ms": sleep_ms} if sleep_ms else {}}],
            "input": {"uri": str(self.rows), "id_column": "id"},
            "shard_rows": shard_rows,
            "batch_rows": 5,
        }
        row = submit_batch(self.database, spec, run=run)
        if not run:
            add_partition(self.home, row.id)
        return row

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a program of this environment in the checkout."""
        program = str(Path(sys.executable).with_name(arguments[0]))
        return subprocess.run(
            [program, *arguments[1:]], cwd=ROOT, env=self.environment, capture_output=True, text=True, check=False
        )

    def wait(self, what: str, check: Callable[[], Any], timeout_s: float = 60.0) -> Any:
        until = time.monotonic() + timeout_s
        while not (found := check()):
            assert time.monotonic() < until, f"timed out: {what}"
            time.sleep(0.1)
        return found

    def metric(self, name: str) -> float:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(self.node.metrics, timeout=5) as answer:
            lines = answer.read().decode().splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name) and "#" not in line)


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    home = Home.at(folder / "home")
    package = folder / "echo"
    package.mkdir()
    (package / DESCRIPTION_FILE).write_bytes(ModelDescription.model_validate(ECHO).to_json())
    rows = folder / "rows.csv"
    rows.write_text("id,x\n" + "".join(f"r{i},{i * 0.5}\n" for i in range(200)))
    key = load_or_create_key(home.user_key)

    async def add() -> ModelPackage:
        store = await EmbeddedContentStore.open(home.store)
        try:
            return await add_model(package, store, key)
        finally:
            await store.close()

    model = asyncio.run(add())
    prepare_instance(home)
    database = open_database(home.database_url)
    trust = format_public_key(public_bytes(key))
    with (
        NodeProcess.start(home.nodes / "a", name="a", trust=[trust], engines=["echo"]) as node,
        dg.DagsterInstance.from_config(str(home.dagster)) as instance,
    ):
        yield Site(home, node, str(model.cid), rows, database, instance)
    database.close()
