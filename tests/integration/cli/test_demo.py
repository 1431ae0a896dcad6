"""The demo from nothing, what can be done with what it leaves, and `dim up` on its home."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest

from dim_pipelines.database.engine import open_database
from dim_pipelines.domain.cid import DAG_CBOR, Cid
from dim_pipelines.orchestrator.batches import Batches
from dim_pipelines.settings import Home

Dim = Callable[..., Any]

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, Any], str]]:
    """Run `dim demo digits --json` in a fresh home; give the home, what it printed, and its standard error."""
    home = tmp_path_factory.mktemp("demo")
    program = [sys.executable, "-m", "dim_pipelines.cli", "demo", "digits", "--json", "--home", str(home)]
    done = subprocess.run(program, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    yield home, json.loads(done.stdout), done.stderr


def test_the_demo_is_right_and_spread_over_both_nodes(demo: tuple[Path, dict[str, Any], str]) -> None:
    _, record, err = demo
    assert err == ""
    assert record["accuracy"] >= 0.95
    assert (record["rows"], record["dead_rows"], record["shards"]) == (1797, 0, 113)
    assert set(record["nodes"]) == {"demo-1", "demo-2"}
    assert min(record["nodes"].values()) >= 0.2 * record["shards"]
    joined = pq.read_table(record["output"])
    assert joined.num_rows == 1797
    assert {"path", "digit", "confidence"} <= set(joined.column_names)


def test_infer_without_dagster_and_in_a_kubo_gives_the_same_result(
    demo: tuple[Path, dict[str, Any], str], dim: Dim, ipfs_binary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, record, _ = demo
    monkeypatch.setenv("DIM_HOME", str(tmp_path / "home"))
    made = home / "demo" / "digits"
    said = dim("infer", "--ipfs", "kubo", "--model", made / "model", "--input", made / "images", "--id-column", "path",
               "--shard-rows", 16, "--batch-rows", 16, "--output", tmp_path / "o.parquet", "--json")  # fmt: skip
    assert said.code == 0, said.err
    assert said.record["result_cid"] == record["result_cid"]
    assert pq.read_table(tmp_path / "o.parquet").equals(pq.read_table(record["output"]))
    # The daemon has ended with the command; Kubo itself reads and verifies what it named.
    ipfs = {"env": {**os.environ, "IPFS_PATH": str(tmp_path / "home" / "kubo")}, "capture_output": True, "check": True}
    block = subprocess.run([ipfs_binary, "block", "get", record["result_cid"]], timeout=60, **ipfs).stdout  # type: ignore[call-overload]
    assert Cid.of(DAG_CBOR, block) == Cid.parse(record["result_cid"])


def test_submit_without_a_run_adds_the_partition_only(
    demo: tuple[Path, dict[str, Any], str], dim: Dim, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dagster import DagsterInstance

    home, _, _ = demo
    monkeypatch.setenv("DIM_HOME", str(home))
    images = home / "demo" / "digits" / "images"
    said = dim("submit", "--model", "digits-cnn", "--input", images, "--id-column", "path", "--no-run", "--json")
    assert said.code == 0, said.err
    assert said.record["batch"] in said.record["next"] and "dagster asset materialize" in said.record["next"]
    row = Batches(open_database(Home.at(home).database_url)).get(said.record["batch"])
    assert (row.state, row.request) == ("queued", 0)
    with DagsterInstance.from_config(str(home / "dagster")) as instance:
        assert said.record["batch"] in instance.get_dynamic_partitions("batches")

    waiting = dim("submit", "--model", "digits-cnn", "--input", images, "--json")
    assert waiting.code == 0 and waiting.record["next"] == "dim up"
    assert "dim up is not running" not in waiting.err
    batches = Batches(open_database(Home.at(home).database_url))
    assert batches.get(waiting.record["batch"]).request == 1
    batches.cancel(waiting.record["batch"], holder="the test")  # else the `dim up` of another test would run it


async def test_an_unsigned_program_is_refused_with_the_way_out(
    demo: tuple[Path, dict[str, Any], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dim_pipelines.content.embedded import EmbeddedContentStore
    from dim_pipelines.content.folders import add_folder

    home, _, _ = demo
    model = home / "demo" / "digits" / "model"
    description = (model / "dim-model.json").read_text().replace('"version": "1"', '"version": "2"')
    store = await EmbeddedContentStore.open(home / "store")
    try:
        cid = await add_folder(store, {"dim-model.json": description.encode(), "model.pt2": model / "model.pt2"})
    finally:
        await store.close()
    program = [sys.executable, "-m", "dim_pipelines.cli", "infer", "--model", str(cid), "--input",
               str(home / "demo" / "digits" / "images"), "--output", str(tmp_path / "o.csv"), "--json"]  # fmt: skip
    done = subprocess.run(  # noqa: ASYNC221 - nothing else runs in this loop
        program, capture_output=True, text=True, timeout=60, check=False, env={**os.environ, "DIM_HOME": str(home)}
    )
    assert done.returncode == 1, done.stderr
    error = json.loads(done.stdout)["error"]
    assert error["code"] == "forbidden" and "signature" in error["message"]
    assert "dim model add" in error["hint"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_up_runs_what_is_submitted_and_leaves_nothing_behind(
    demo: tuple[Path, dict[str, Any], str], tmp_path: Path
) -> None:
    home, record, _ = demo
    port = free_port()
    program = [sys.executable, "-m", "dim_pipelines.cli", "up", "--port", str(port), "--json"]
    up = subprocess.Popen(
        program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, "DIM_HOME": str(home)},
    )  # fmt: skip
    try:
        assert up.stdout is not None
        line = up.stdout.readline()
        assert line, up.communicate()
        shown = json.loads(line)
        assert shown["page"] == f"http://127.0.0.1:{port}"
        assert list(shown["nodes"]) == ["node-1"]
        query = json.dumps({"query": "{assetNodes{assetKey{path}} runsOrError{... on Runs{results{status}}}}"})
        request = urllib.request.Request(
            f"{shown['page']}/graphql", query.encode(), {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=30) as response:
            data = json.load(response)["data"]
        assert {tuple(node["assetKey"]["path"]) for node in data["assetNodes"]} >= {("dataset",), ("results",)}
        assert "SUCCESS" in [run["status"] for run in data["runsOrError"]["results"]]  # that of the demo

        images = str(home / "demo" / "digits" / "images")
        submit = ["submit", "--model", "digits-cnn", "--input", images, "--id-column", "path", "--shard-rows", "16"]
        submit += ["--batch-rows", "16", "--output", str(tmp_path / "o.parquet"), "--json"]
        submitted = subprocess.run(
            [*program[:3], *submit], capture_output=True, text=True, timeout=120, check=False,
            env={**os.environ, "DIM_HOME": str(home)},
        )  # fmt: skip
        assert submitted.returncode == 0, submitted.stderr
        assert json.loads(submitted.stdout)["result_cid"] == record["result_cid"]
        assert pq.read_table(tmp_path / "o.parquet").num_rows == 1797

        second = subprocess.run(
            [*program[:-3], "--port", str(free_port())], capture_output=True, text=True, timeout=60, check=False,
            env={**os.environ, "DIM_HOME": str(home)},
        )  # fmt: skip
        assert second.returncode == 2 and "dim up runs already" in second.stderr

        family = psutil.Process(up.pid).children(recursive=True)
        assert len(family) >= 4
        os.kill(up.pid, signal.SIGINT)
        up.communicate(timeout=60)
        assert up.returncode == 0
        _, alive = psutil.wait_procs(family, timeout=60)
        assert [process.cmdline() for process in alive] == []
        assert not (home / "up.json").exists()
    finally:
        up.kill()
        up.communicate()
