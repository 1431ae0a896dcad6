"""Every way in which a person starts a batch in Dagster without its page: real processes, SQLite, a real node."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import dagster as dg
import pyarrow.parquet as pq
import pytest
import yaml

from dim_pipelines.node.runner import CANCEL_GRACE_S
from dim_pipelines.orchestrator.dagster_instance import daemon_command

IN_DEFINITIONS = ("-m", "dim_pipelines.definitions")
SIGNAL_S = 1.0
"""How long the request to terminate may take through Dagster's code server to the run worker, in seconds."""


def _assert_done(site: Any, batch: str) -> None:
    """The batch is done, its table is whole, and both checks of its run passed."""
    row = site.batches.get(batch)
    assert row.state == "done", row.error
    table = pq.read_table(row.output)
    assert table.column("id").to_pylist() == [f"r{i}" for i in range(200)]
    assert table.column("y").to_pylist() == [i * 0.5 for i in range(200)]
    events = [entry.dagster_event for entry in site.instance.all_logs(row.run_id)]
    checks = [
        event.event_specific_data for event in events if event and event.event_type_value == "ASSET_CHECK_EVALUATION"
    ]
    assert sorted((check.check_name, check.passed) for check in checks) == [
        ("result_is_retrievable", True),
        ("rows_in_equal_rows_out", True),
    ]


def _materialization(site: Any, batch: str) -> dg.AssetMaterialization:
    wanted = dg.AssetRecordsFilter(asset_key=dg.AssetKey("results"), asset_partitions=[batch])
    record = site.instance.fetch_materializations(wanted, limit=1).records[0]
    assert record.asset_materialization is not None
    return record.asset_materialization


def _version(site: Any, batch: str) -> str:
    return (_materialization(site, batch).tags or {})["dagster/data_version"]


@pytest.fixture(scope="module", autouse=True)
def _daemon(site: Any) -> Iterator[None]:
    """Dagster's daemon, as `dim up` starts it."""
    site.home.logs.mkdir(exist_ok=True)
    with (site.home.logs / "daemon.log").open("ab") as log:
        process = subprocess.Popen(daemon_command(site.home), env=site.environment, stdout=log, stderr=log)
    yield
    process.terminate()
    process.wait(30)


def test_asset_materialize_and_dg_launch_run_a_batch_and_give_the_same_result(site: Any) -> None:
    first, second = site.submit(run=False), site.submit(run=False)
    by_dagster = site.command(
        "dagster", "asset", "materialize", *IN_DEFINITIONS, "--select", "*", "--partition", first.id
    )
    assert by_dagster.returncode == 0, by_dagster.stderr
    _assert_done(site, first.id)
    by_dg = site.command("dg", "launch", "--assets", "*", "--partition", second.id)
    assert by_dg.returncode == 0, by_dg.stdout + by_dg.stderr
    _assert_done(site, second.id)

    assert _version(site, first.id) == _version(site, second.id) == str(site.batches.get(first.id).result)
    lines = [entry.user_message for entry in site.instance.all_logs(site.batches.get(first.id).run_id)]
    assert any("20 of 20 shards (100 %), 200 of 200 rows" in text for text in lines)


def test_new_batch_on_the_command_line_is_run_by_the_daemon(site: Any) -> None:
    config = {"model": "echo", "input": str(site.rows), "id_column": "id", "shard_rows": 10, "batch_rows": 5}
    path = site.home.root / "new_batch.yaml"
    path.write_text(yaml.safe_dump({"ops": {"submit": {"config": config}}}))
    known = {row.id for row in site.batches.list()}
    launched = site.command("dagster", "job", "execute", *IN_DEFINITIONS, "-j", "new_batch", "-c", str(path))
    assert launched.returncode == 0, launched.stderr
    (batch,) = {row.id for row in site.batches.list()} - known
    site.wait("the sensor's run", lambda: site.batches.get(batch).run_id)
    run = site.wait("the run's end", lambda: _finished(site, site.batches.get(batch).run_id))

    assert run.status is dg.DagsterRunStatus.SUCCESS
    assert (run.tags["dim/batch"], run.tags["dagster/sensor_name"]) == (batch, "queued_batches")
    _assert_done(site, batch)


def test_terminate_stops_the_node_within_a_second_and_the_run_ends_cancelled(site: Any) -> None:
    slow = site.submit(run=True, sleep_ms=300)
    site.wait("the slow batch's first shards", lambda: site.batches.get(slow.id).head is not None, 90)
    run_id = site.batches.get(slow.id).run_id
    assert site.metric("dim_node_sessions") == 1
    asked = time.monotonic()
    assert site.instance.run_launcher.terminate(run_id)
    site.wait("the node's end of the session", lambda: site.metric("dim_node_sessions") == 0, 10)
    stopped_s = time.monotonic() - asked
    time.sleep(CANCEL_GRACE_S)  # what the engine had begun may end by itself for so long; it is dropped
    rows = site.metric("dim_node_rows_total")
    run = site.wait("the cancelled run's end", lambda: _finished(site, run_id))
    time.sleep(2 * 0.3)  # two of its shards

    assert run.status is dg.DagsterRunStatus.CANCELED
    assert stopped_s < 1.0 + SIGNAL_S
    assert site.metric("dim_node_rows_total") == rows
    row = site.batches.get(slow.id)
    assert (row.state, row.result) == ("cancelled", None)


def test_a_killed_run_is_taken_up_where_it_was(site: Any) -> None:
    slow = site.submit(run=False, sleep_ms=300)
    arguments = ("asset", "materialize", *IN_DEFINITIONS, "--select", "*", "--partition", slow.id)
    killed = subprocess.Popen(
        [sys.executable, "-m", "dagster", *arguments],
        env=site.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    site.wait("the first journal segment", lambda: site.batches.get(slow.id).head is not None, 90)
    killed.kill()
    killed.wait()
    assert site.batches.get(slow.id).state == "running"

    again = site.command("dagster", *arguments)
    assert again.returncode == 0, again.stderr
    _assert_done(site, slow.id)
    resumed = _materialization(site, slow.id).metadata["dim/resumed_shards"].value
    assert 0 < resumed < 20


def _finished(site: Any, run_id: str) -> dg.DagsterRun | None:
    run = site.instance.get_run_by_id(run_id)
    return run if run is not None and run.is_finished else None
