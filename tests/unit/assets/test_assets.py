"""The assets of a batch: what passes between them, what they say, and what becomes of the batch's row."""

from __future__ import annotations

from typing import Any

import dagster as dg
import pyarrow as pa
import pytest

from dim_pipelines.assets.checks import result_is_retrievable, rows_in_equal_rows_out
from dim_pipelines.assets.results import considered_table
from dim_pipelines.content.unixfs import add_bytes
from dim_pipelines.errors import ContentUnavailable, InputError, NoFeasibleNode, StaleEpoch
from dim_pipelines.scheduling.ranking import Explained


def _materialization(result: dg.ExecuteInProcessResult, asset: str) -> dg.AssetMaterialization:
    return result.asset_materializations_for_node(asset)[0]


def _metadata(result: dg.ExecuteInProcessResult, asset: str) -> dict[str, Any]:
    return {key: value.value for key, value in _materialization(result, asset).metadata.items()}


def _failure(result: dg.ExecuteInProcessResult, step: str) -> tuple[str, dict[str, Any]]:
    data = next(event for event in result.all_events if event.is_step_failure and event.step_key == step)
    error = data.step_failure_data.user_failure_data
    assert error is not None
    return error.description or "", {key: value.value for key, value in error.metadata.items()}


def test_a_batch_runs_through_and_its_row_says_so(machine: Any) -> None:
    result = machine.materialize()
    row = machine.batches.get("b1")

    assert result.success
    assert (row.state, row.run_id) == ("done", result.run_id)
    assert str(row.dataset) == _metadata(result, "dataset")["dim/cid"]
    assert str(row.result) == _metadata(result, "results")["dim/cid"]
    assert row.output == str(machine.home.outputs / "b1.parquet")


def test_what_was_submitted_is_what_runs(machine: Any) -> None:
    machine.materialize()
    ingest, run, join = machine.calls

    assert (ingest["batch"], ingest["owner"], ingest["models"]) == ("b1", "local", ["model digits of local"])
    assert (run["run"].id, run["source"], run["dataset"]) == ("b1", "/data/rows.csv", machine.batches.get("b1").dataset)
    assert run["holder"].startswith("dagster/")
    assert (join["join"], join["dataset"]) == (machine.batches.get("b1").result, run["dataset"])


def test_the_data_version_of_a_result_is_its_cid(machine: Any) -> None:
    result = machine.materialize()
    tags = _materialization(result, "results").tags or {}

    assert tags["dagster/data_version"] == str(machine.batches.get("b1").result)
    assert tags["dagster/partition"] == "b1" if "dagster/partition" in tags else True


def test_a_result_shows_what_it_is_and_what_it_cost(machine: Any) -> None:
    metadata = _metadata(machine.materialize(), "results")
    row = machine.batches.get("b1")

    assert metadata["dim/result_cid"] == str(row.result)
    assert metadata["dim/dataset_cid"] == str(row.dataset)
    assert metadata["dim/provenance_cid"] == str(row.provenance)
    assert (metadata["dagster/row_count"], metadata["dim/shards"], metadata["dim/resumed_shards"]) == (12, 3, 1)
    assert (metadata["dim/rows_per_s"], metadata["dim/licence"]) == (8.0, "Apache-2.0")
    assert "| 3 | 1.5 | 1 |" in metadata["dim/preview"]
    assert [(share.data["node"], share.data["share"]) for share in metadata["dim/nodes"].records] == [
        ("node-a", "66.7 %"),
        ("node-b", "33.3 %"),
    ]
    assert "data:image/png;base64," in metadata["dim/picture"]
    assert len(metadata["dim/picture"]) < 61_000


def test_a_result_shows_every_node_and_why_it_was_not_used() -> None:
    table = considered_table(
        [
            Explained("k1", "ann", "ELIGIBLE", True, score=0.75, parts={"load": 0.5}),
            Explained("k2", "ben", "SUSPECT", False, ("it does not answer", "it has no engine torch (it has echo)")),
            Explained("k3", "cid", "ELIGIBLE", True, score=0.5, parts={"load": 0.25}, chosen=True),
        ]
    )

    assert [record.data for record in table.records] == [
        {"node": "cid", "state": "ELIGIBLE", "used": "yes", "reasons": "", "score": "0.500", "score of": "load 0.25"},
        {
            "node": "ann",
            "state": "ELIGIBLE",
            "used": "no",
            "reasons": "it was not needed",
            "score": "0.750",
            "score of": "load 0.50",
        },
        {
            "node": "ben",
            "state": "SUSPECT",
            "used": "no",
            "reasons": "it does not answer; it has no engine torch (it has echo)",
            "score": "",
            "score of": "",
        },
    ]
    assert considered_table([]).records == []


def test_the_checks_of_a_good_result_pass(machine: Any) -> None:
    checks = {check.check_name: check for check in machine.materialize().get_asset_check_evaluations()}

    assert {name: check.passed for name, check in checks.items()} == {
        "rows_in_equal_rows_out": True,
        "result_is_retrievable": True,
    }
    assert checks["rows_in_equal_rows_out"].metadata["rows out"].value == 12
    assert checks["result_is_retrievable"].metadata["shards hashed"].value == 3


def test_lost_rows_fail_the_check_and_there_is_no_report(machine: Any) -> None:
    machine.lost_rows = 1
    result = machine.materialize()
    checks = {check.check_name: check for check in result.get_asset_check_evaluations()}

    assert not checks["rows_in_equal_rows_out"].passed
    assert "12 rows in 3 shards went in, 11 rows" in (checks["rows_in_equal_rows_out"].description or "")
    assert not result.success
    assert result.asset_materializations_for_node("report") == []


def test_a_check_that_is_run_alone_looks_at_the_newest_result(machine: Any) -> None:
    assert machine.materialize().success
    check = machine.check(rows_in_equal_rows_out)

    assert check.passed
    assert check.metadata["rows out"].value == 12


def test_blocks_that_are_gone_fail_the_check(machine: Any) -> None:
    assert machine.materialize().success
    machine.portal.call(machine.store.collect(2**50, 0))
    check = machine.check(result_is_retrievable)

    assert not check.passed
    assert check.metadata["dim/error_code"].value == "content_not_found"


def test_a_check_without_a_result_fails(machine: Any) -> None:
    check = machine.check(result_is_retrievable)

    assert not check.passed
    assert "knows no results" in (check.description or "")


def test_one_asset_runs_alone_with_the_content_of_its_own_partition(machine: Any) -> None:
    machine.batches.submit(machine.batches.get("b1").spec, batch_id="b2")
    machine.instance.add_dynamic_partitions("batches", ["b2"])
    assert machine.materialize("dataset").success
    machine.shards = 5
    assert machine.materialize("dataset", partition="b2").success
    machine.shards = 3

    assert machine.materialize("results").success
    assert machine.calls[-1]["dataset"] == machine.batches.get("b1").dataset != machine.batches.get("b2").dataset


def test_an_asset_without_its_input_says_what_to_run_first(machine: Any) -> None:
    result = machine.materialize("results")
    description, _ = _failure(result, "results")

    assert "this Dagster instance knows no dataset of batch b1" in description
    assert "--select dataset --partition b1" in description


def test_dead_rows_are_shown_with_their_reason(machine: Any) -> None:
    table = pa.table({"row": [7], "reason": ["does not decode"], "file": ["7.png"]})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    machine.errors = machine.portal.call(add_bytes(machine.store, sink.getvalue().to_pybytes()))
    metadata = _metadata(machine.materialize(), "report")

    assert metadata["dim/errors_cid"] == str(machine.errors)
    assert "| 7 | does not decode | 7.png |" in metadata["dim/errors"]


def test_a_report_says_where_the_table_lies(machine: Any, tmp_path: Any) -> None:
    wanted = tmp_path / "mine.csv"
    machine.batches.keep_output("b1", str(wanted))
    metadata = _metadata(machine.materialize(), "report")

    assert metadata["dim/path"] == str(wanted)
    assert (metadata["dagster/row_count"], metadata["dim/size_bytes"]) == (12, 6)


def test_an_error_is_one_line_with_a_hint_and_fails_the_batch(machine: Any) -> None:
    machine.run_error = InputError("column 'labl' is not there", hint="did you mean 'label'?")
    result = machine.materialize()
    row = machine.batches.get("b1")

    assert _failure(result, "results") == (
        "column 'labl' is not there\ndid you mean 'label'?",
        {"dim/error_code": "input", "dim/hint": "did you mean 'label'?"},
    )
    assert (row.state, row.error) == ("failed", "column 'labl' is not there")


def test_each_nodes_reason_is_shown(machine: Any) -> None:
    machine.run_error = NoFeasibleNode(reasons={"b": "no device", "a": "no memory"})
    _, metadata = _failure(machine.materialize(), "results")

    assert [reason.data for reason in metadata["dim/reasons"].records] == [
        {"node": "a", "reason": "no memory"},
        {"node": "b", "reason": "no device"},
    ]


def test_a_run_that_was_overtaken_leaves_the_row_alone(machine: Any) -> None:
    machine.run_error = StaleEpoch()
    result = machine.materialize()

    assert not result.success
    assert machine.batches.get("b1").state == "running"


def test_a_bug_fails_the_batch_as_well(machine: Any) -> None:
    machine.run_error = ZeroDivisionError("oops")
    machine.materialize()

    assert machine.batches.get("b1").error == "ZeroDivisionError: oops"


def test_a_store_that_does_not_answer_is_tried_again_where_that_is_cheap(
    machine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dim_pipelines.assets.dataset as module
    import dim_pipelines.assets.failures as failures_module

    monkeypatch.setattr(failures_module, "RETRY_DELAY_S", 0)
    ingest, tries = module.ingest, []

    async def flaky(*arguments: Any, **named: Any) -> Any:
        tries.append(1)
        if len(tries) < 3:
            raise ContentUnavailable("the store does not answer")
        return await ingest(*arguments, **named)

    monkeypatch.setattr(module, "ingest", flaky)

    assert machine.materialize("dataset").success
    assert len(tries) == 3
    row = machine.batches.get("b1")
    assert (row.state, row.epoch) == ("running", 3), "each try holds the batch, so that nobody resumes it meanwhile"


def test_results_are_never_tried_again_by_dagster(machine: Any) -> None:
    machine.run_error = ContentUnavailable("the store does not answer")
    machine.materialize()

    assert sum("run" in call for call in machine.calls) == 1
    assert machine.batches.get("b1").state == "failed"


@pytest.mark.parametrize(
    ("error", "description"),
    [
        (dg.DagsterExecutionInterruptedError(), "the batch was cancelled"),
        (InputError("whatever came of the interrupt"), "whatever came of the interrupt"),
    ],
)
def test_a_cancelled_run_cancels_the_batch_and_is_not_tried_again(
    machine: Any, error: BaseException, description: str
) -> None:
    def terminate() -> None:
        machine.instance.report_run_canceling(machine.instance.get_runs()[0])

    machine.during_run = terminate
    machine.run_error = error
    result = machine.run_job(dg.RetryPolicy(max_retries=3))

    assert _failure(result, "results")[0] == description
    assert sum("run" in call for call in machine.calls) == 1
    assert machine.batches.get("b1").state == "cancelled"


def test_an_interrupted_run_leaves_the_batch_to_be_resumed(machine: Any) -> None:
    machine.run_error = dg.DagsterExecutionInterruptedError()

    assert not machine.materialize().success
    assert machine.batches.get("b1").state == "running"


def test_progress_reaches_the_runs_log(machine: Any) -> None:
    result = machine.materialize()
    lines = [entry.user_message for entry in machine.instance.all_logs(result.run_id)]

    assert any("1 of 3 shards (33 %)" in text for text in lines)
