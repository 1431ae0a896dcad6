"""A node joins the network of `dim up` and a person sees it in Dagster's pages: joined, used, lost; and batches wait.

The screenshots stay in `out/e2e/`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
import pytest

from dim_pipelines.orchestrator.dagster_daemon import pool_limit

if TYPE_CHECKING:
    from playwright.sync_api import Page

OUTPUT = Path(__file__).parents[2] / "out" / "e2e"


def _wait(what: str, check: Callable[[], Any], timeout_s: float = 180.0) -> Any:
    until = time.monotonic() + timeout_s
    while not (found := check()):
        assert time.monotonic() < until, f"timed out: {what}"
        time.sleep(0.2)
    return found


def _state(instance: dg.DagsterInstance, node: str) -> object:
    """Give the state of a node as Dagster was last told."""
    wanted = dg.AssetRecordsFilter(asset_key=dg.AssetKey("nodes"), asset_partitions=[node])
    said = instance.fetch_materializations(wanted, limit=1).records[0].asset_materialization
    return None if said is None else said.metadata["dim/state"].value


@pytest.fixture
def attic(up: Any, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A node with a home of its own that has joined the network by an invite."""
    home = tmp_path / "attic"
    invite = up.dim("network", "invite", "--owner", "ada")["invite"]
    up.dim("network", "join", invite, "--label", "attic", home=home)
    command = [sys.executable, "-m", "dim_pipelines.cli", "node", "start", "--name", "attic", "--json"]
    environment = {**os.environ, "DIM_HOME": str(home)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            assert process.stdout is not None
            assert json.loads(process.stdout.readline())
            yield process
        finally:
            process.kill()


@pytest.mark.timeout(600)
def test_a_node_that_joins_is_seen_and_used_and_missed(up: Any, attic: subprocess.Popen[bytes], page: Page) -> None:
    with dg.DagsterInstance.from_config(str(up.home.dagster)) as instance:
        _wait("the node's partition", lambda: "attic" in instance.get_dynamic_partitions("dim_nodes"))

        # Joined: it has a partition, which says what it is.
        page.goto(f"{up.page}/assets/nodes?view=partitions&partition=attic")
        for text in ("dim/devices", "dim/reach", "ada", "ELIGIBLE"):
            page.get_by_text(text).first.wait_for()
        page.screenshot(path=OUTPUT / "6-node.png")

        # Nobody takes work: a batch waits in the queue, and runs when somebody does.
        homes = [*sorted(each for each in up.home.nodes.iterdir() if each.is_dir()), up.home.root.parent / "attic"]
        for home in homes:
            up.dim("node", "pause", home=home)
        _wait("the pool's end", lambda: pool_limit(instance) == 0)
        up.dim("submit", "--model", "digits-cnn", "--input", up.images, "--no-wait")
        (run,) = _wait("the batch's run", lambda: instance.get_runs(dg.RunsFilter(job_name="batch")))
        log, refused = up.home.logs / "dagster-daemon.log", f"Run {run.run_id} is blocked by global concurrency limits"
        _wait("the queue's look at the run", lambda: refused in log.read_text())
        page.goto(f"{up.page}/runs")
        page.get_by_text("Queued").first.wait_for()
        page.screenshot(path=OUTPUT / "7-waiting.png")
        waiting = instance.get_run_by_id(run.run_id)
        assert waiting is not None
        assert waiting.status is dg.DagsterRunStatus.QUEUED
        for home in homes:
            up.dim("node", "resume", home=home)
        row = up.batch()
        assert row.state == "done", row.error

        # Used: the result names it, and why others were not taken.
        page.goto(f"{up.page}/assets/results?view=partitions&partition={row.id}")
        page.get_by_text("dim/considered").first.wait_for()
        page.get_by_text("dim/considered").first.scroll_into_view_if_needed()
        page.screenshot(path=OUTPUT / "8-considered.png")

        # Missed: it is killed, and its partition says so.
        attic.send_signal(signal.SIGKILL)
        _wait("the word of its end", lambda: _state(instance, "attic") == "SUSPECT")
        page.goto(f"{up.page}/assets/nodes?view=partitions&partition=attic")
        page.get_by_text("SUSPECT").first.wait_for()
        page.screenshot(path=OUTPUT / "9-lost-node.png")

        page.goto(f"{up.page}/assets/node_pool?view=overview")
        page.get_by_text("dim/available").first.wait_for()
        page.screenshot(path=OUTPUT / "10-node-pool.png")
        page.goto(f"{up.page}/assets/node_pool?view=checks")
        for check in ("quorum", "stale_records"):
            page.get_by_text(check).first.wait_for()
        page.get_by_text("Passed", exact=True).first.wait_for()
        page.screenshot(path=OUTPUT / "11-pool-checks.png")
