"""The composition root: what Dagster finds in it, and that loading it stays light and quiet."""

from __future__ import annotations

import subprocess
import sys

import dagster as dg

from dim_pipelines.definitions import defs

HEAVY = ("torch", "pandas", "matplotlib", "sklearn", "ipfshttpclient")


def test_everything_is_there_and_fits_together() -> None:
    dg.Definitions.validate_loadable(defs)
    graph = defs.resolve_asset_graph()

    assert {key.to_user_string() for key in graph.get_all_asset_keys()} == {
        *("dataset", "results", "report"),
        *("nodes", "node_pool"),
    }
    assert {key.name for key in graph.asset_check_keys} == {
        *("rows_in_equal_rows_out", "result_is_retrievable"),
        *("quorum", "stale_records"),
    }
    assert {job.name for job in defs.resolve_all_job_defs()} >= {"batch", "new_batch"}
    assert [sensor.name for sensor in defs.sensors or ()] == ["queued_batches", "ipns_nodes"]


def test_a_run_stays_in_one_process_and_results_are_not_retried() -> None:
    job = defs.resolve_job_def("batch")

    assert job.executor_def is dg.in_process_executor
    assert all(node.retry_policy is None for node in job.nodes)


def test_loading_needs_no_model_library_and_warns_of_nothing() -> None:
    code = (
        "import sys, warnings; warnings.simplefilter('error'); "
        "warnings.filterwarnings('ignore', 'The `__fields__` attribute'); "
        "import dim_pipelines.definitions; "
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert (loaded.stdout.strip(), loaded.returncode) == ("[]", 0), loaded.stderr
