"""`dim infer` and `dim resume` on real node daemons."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from dim_pipelines.identity.keys import format_public_key, load_or_create_key, public_bytes
from dim_pipelines.node.process import NodeProcess
from dim_pipelines.settings import Home

Dim = Callable[..., Any]


@pytest.fixture(scope="module")
def node(dim_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    """A node without torch that trusts the tests' home."""
    key = format_public_key(public_bytes(load_or_create_key(Home.at(dim_home).user_key)))
    with NodeProcess.start(tmp_path_factory.mktemp("node"), name="one", trust=[key], engines=["echo"]) as node:
        yield node


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """A CSV of 1,000 rows with ids."""
    path = tmp_path / "rows.csv"
    path.write_text("a,id,note\n" + "".join(f"{row / 4},r{row},n\n" for row in range(1000)))
    return path


def test_a_table_goes_in_and_comes_out_joined(
    dim: Dim, node: NodeProcess, echo_model: Path, rows: Path, tmp_path: Path
) -> None:
    options = ["--id-column", "id", "--shard-rows", 64, "--batch-rows", 16, "--nodes", node.address, "--json"]
    said = dim("infer", "--model", echo_model, "--input", rows, "--output", tmp_path / "o.parquet", *options)
    assert said.code == 0, said.err
    record = said.record
    assert set(record) == {
        "batch", "result_cid", "dataset_cid", "provenance_cid", "rows", "dead_rows", "shards", "resumed_shards",
        "rows_per_s", "seconds", "nodes", "output",
    }  # fmt: skip
    assert (record["rows"], record["dead_rows"], record["shards"], record["resumed_shards"]) == (1000, 0, 16, 0)
    assert record["nodes"] == {"one": 16}
    assert record["output"] == str(tmp_path / "o.parquet")
    joined = pq.read_table(tmp_path / "o.parquet")
    assert joined.column("id").to_pylist() == [f"r{row}" for row in range(1000)]
    outputs = [name for name in joined.column_names if name not in ("id", "a")]
    assert joined.column(outputs[0]).to_pylist() == [row / 4 for row in range(1000)]

    again = dim("infer", "--model", "echo-a", "--input", rows, "--output", tmp_path / "o.csv", *options)
    assert again.code == 0, again.err
    assert again.record["result_cid"] == record["result_cid"] and again.record["batch"] != record["batch"]
    assert pyarrow.csv.read_csv(tmp_path / "o.csv").num_rows == 1000

    by_cid = dim(
        "infer", "--model", "echo-a", "--input", record["dataset_cid"], "--output", tmp_path / "c.csv", *options
    )
    assert by_cid.code == 0, by_cid.err
    assert by_cid.record["dataset_cid"] == record["dataset_cid"]


def test_a_node_of_its_own_is_started_and_stopped(
    dim: Dim, dim_home: Path, echo_model: Path, rows: Path, tmp_path: Path
) -> None:
    said = dim("infer", "--model", echo_model, "--input", rows, "--output", tmp_path / "o.csv")
    assert said.code == 0, said.err
    assert "1,000 rows in" in said.out and "here-1" in said.out
    assert not list(dim_home.glob("nodes/*/node/node.json"))


def test_bad_rows_are_set_aside_and_the_exit_code_says_so(
    dim: Dim, node: NodeProcess, echo_model: Path, tmp_path: Path
) -> None:
    source = tmp_path / "rows.csv"
    source.write_text("a,id\n1,x\nmany,y\n3,z\n")
    options = ["--id-column", "id", "--on-row-error", "dead_letter", "--nodes", node.address, "--json"]
    said = dim("infer", "--model", echo_model, "--input", source, "--output", tmp_path / "o.parquet", *options)
    assert said.code == 3, said.err
    assert (said.record["rows"], said.record["dead_rows"]) == (2, 1)
    assert pq.read_table(tmp_path / "o.parquet").column("id").to_pylist() == ["x", "z"]
    [dead] = tmp_path.glob("o.dead*")
    table = pq.read_table(dead).to_pylist()
    assert len(table) == 1 and "rows.csv" in str(table[0])


def test_a_node_that_is_not_there_is_named(dim: Dim, echo_model: Path, rows: Path, tmp_path: Path) -> None:
    said = dim("infer", "--model", echo_model, "--input", rows, "--output", tmp_path / "o.csv",
               "--nodes", f"unix:{tmp_path}/no.sock")  # fmt: skip
    assert said.code == 1 and "no.sock" in said.err
    assert not (tmp_path / "o.csv").exists()


def test_an_interrupted_batch_is_done_when_resumed_and_not_again(
    dim: Dim, node: NodeProcess, echo_model: Path, rows: Path, tmp_path: Path
) -> None:
    options = ["--output", tmp_path / "o.csv", "--shard-rows", 10, "--batch-rows", 10]
    failed = dim("infer", "--model", echo_model, "--input", rows, *options, "--nodes", f"unix:{tmp_path}/no.sock")
    assert failed.code == 1
    from dim_pipelines.database.engine import open_database
    from dim_pipelines.orchestrator.batches import Batches

    row = Batches(open_database(Home.at().database_url)).list(limit=1)[0]
    assert row.state == "failed" and row.error
    resumed = dim("resume", row.id, "--nodes", node.address, "--json")
    assert resumed.code == 0, resumed.err
    assert resumed.record["batch"] == row.id and resumed.record["rows"] == 1000
    assert (tmp_path / "o.csv").exists()
    again = dim("resume", row.id, "--json")
    assert again.code == 0
    assert again.record["result_cid"] == resumed.record["result_cid"]


def test_an_altered_model_is_found_and_not_used(
    dim: Dim, node: NodeProcess, write_model: Callable[..., Path], rows: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("DIM_HOME", str(tmp_path / "home"))
    folder = write_model(tmp_path / "model", name="altered", files={"table": "weights.bin"})
    (folder / "weights.bin").write_bytes(bytes(range(256)) * 800)
    assert dim("model", "add", folder).code == 0
    [block] = [
        path for path in (tmp_path / "home" / "store").rglob("*") if path.is_file() and path.stat().st_size == 204800
    ]
    data = bytearray(block.read_bytes())
    data[1000] ^= 1
    block.chmod(0o600)
    block.write_bytes(data)
    said = dim("infer", "--model", "altered", "--input", rows, "--output", tmp_path / "o.csv", "--nodes", node.address,
               "--json")  # fmt: skip
    assert said.code == 1 and said.record["error"]["code"] == "content_mismatch", said.err
    assert not (tmp_path / "o.csv").exists()
    verified = dim("model", "verify", "altered", "--json")
    assert verified.code == 1 and not verified.record["ok"]
