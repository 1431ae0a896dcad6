"""The jobs: what the launchpad offers, and what submitting leaves behind."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dagster as dg
import pytest
from dagster._daemon.types import DaemonHeartbeat

import dim_pipelines.assets.jobs as jobs
from dim_pipelines.assets.jobs import NewBatch, new_batch
from dim_pipelines.content.memory import MemoryContentStore
from dim_pipelines.content.store import ContentStore
from dim_pipelines.database.engine import Database, open_database
from dim_pipelines.dispatch.portal import Portal
from dim_pipelines.domain.batch import BatchSpec
from dim_pipelines.domain.cid import DAG_PB, Cid
from dim_pipelines.errors import InputError
from dim_pipelines.orchestrator.batches import Batches, BatchRow
from dim_pipelines.orchestrator.dagster_daemon import sensors_run
from dim_pipelines.resources.io_manager import CidIOManager

MODEL = Cid.of(DAG_PB, b"digits")


@dataclass
class Place:
    """Where a job runs: its resources, its Dagster instance and its folder, which holds `rows.csv`."""

    database: Database
    portal: Portal
    instance: dg.DagsterInstance
    folder: Path

    @property
    def batches(self) -> Batches:
        return Batches(self.database)

    def run(self, **fields: Any) -> dg.ExecuteInProcessResult:
        given = {"model": "digits", "input": "rows.csv", **fields}
        return new_batch.execute_in_process(
            run_config=dg.RunConfig(ops={"submit": NewBatch(**given)}),
            resources={
                "database": self.database,
                "portal": self.portal,
                "content_store": MemoryContentStore(),
                "io_manager": CidIOManager(),
            },
            instance=self.instance,
            raise_on_error=False,
        )

    def submitted(self, **fields: Any) -> BatchRow:
        assert self.run(**fields).success
        (row,) = self.batches.list()
        return row

    def refused(self, **fields: Any) -> str:
        (failure,) = [event for event in self.run(**fields).all_events if event.is_step_failure]
        said = failure.step_failure_data.user_failure_data
        assert said is not None
        return said.description or ""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    async def find_model(reference: str, store: ContentStore, owner: str) -> SimpleNamespace:
        if reference != "digits":
            raise InputError(f"there is no model {reference!r}", hint="dim model list shows them")
        return SimpleNamespace(cid=MODEL)

    monkeypatch.setattr(jobs, "find_model", find_model)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.csv").write_text("x\n1\n")
    database = open_database(f"sqlite:///{tmp_path / 'dim.db'}")
    with Portal() as portal, dg.DagsterInstance.ephemeral() as instance:
        yield Place(database, portal, instance, tmp_path)
    database.close()


def test_a_new_batch_is_queued_with_what_was_said(place: Place) -> None:
    row = place.submitted(
        input=str(place.folder),
        name="try",
        columns=["image"],
        id_column="file",
        shard_rows=64,
        batch_rows=16,
        on_row_error="dead_letter",
        output="/data/out.csv",
        output_format="csv",
    )

    assert place.instance.get_dynamic_partitions("batches") == [row.id]
    assert (row.state, row.request, row.output) == ("queued", 1, "/data/out.csv")
    assert row.spec == BatchSpec.read(
        {
            "name": "try",
            "models": [str(MODEL)],
            "input": {"uri": str(place.folder), "columns": ["image"], "id_column": "file"},
            "output": {"format": "csv"},
            "shard_rows": 64,
            "batch_rows": 16,
            "on_row_error": "dead_letter",
        }
    )


def test_relative_paths_are_made_absolute(place: Place) -> None:
    row = place.submitted(output="out.parquet")

    assert (row.spec.input.uri, row.output) == (str(place.folder / "rows.csv"), str(place.folder / "out.parquet"))


@pytest.mark.parametrize("uri", ["ipfs://bafy/x", str(MODEL)])
def test_content_is_no_path(place: Place, uri: str) -> None:
    assert place.submitted(input=uri).spec.input.uri == uri


def test_without_a_daemon_the_job_says_what_to_do(place: Place) -> None:
    result = place.run()
    (event,) = [event for event in result.all_events if event.is_successful_output]
    said = event.step_output_data.metadata["dim/next"].value

    assert "no Dagster daemon is running" in said
    assert f"--partition {event.step_output_data.metadata['dim/batch'].value}" in said


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"shard_rows": 0}, "batch spec, shard_rows: Input should be greater than or equal to 1"),
        ({"model": "digit"}, "there is no model 'digit'\ndim model list shows them"),
        ({"input": "/no/rows.csv"}, "no such file or folder: /no/rows.csv\ngive an absolute path"),
    ],
)
def test_what_cannot_run_is_refused_in_one_line(place: Place, fields: dict[str, Any], message: str) -> None:
    assert place.refused(**fields).startswith(message)
    assert place.batches.list() == []


def test_a_live_daemon_is_seen() -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        assert not sensors_run(instance)
        instance.add_daemon_heartbeat(DaemonHeartbeat(time.time(), "SENSOR", None, []))
        assert sensors_run(instance)
        instance.add_daemon_heartbeat(DaemonHeartbeat(time.time() - 600, "SENSOR", None, []))
        assert not sensors_run(instance)


def test_every_field_of_the_launchpad_is_described() -> None:
    assert all(field.description for field in NewBatch.model_fields.values())
