"""`dim nodes` and `dim nodes explain`, over a real node of this home and over a network's table."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dim_pipelines.database.engine import open_database
from dim_pipelines.discovery.node_states import Healthy, Unhealthy
from dim_pipelines.discovery.node_table import NodeTable
from dim_pipelines.discovery.record import make_node_record, read_node_record
from dim_pipelines.discovery.reputation_table import ReputationTable
from dim_pipelines.domain.advertisement import AdvertisedDevice, Advertisement, RecordFields
from dim_pipelines.identity.keys import format_public_key, load_or_create_key, public_bytes
from dim_pipelines.node.process import NodeProcess
from dim_pipelines.scheduling.reputation import Seen
from dim_pipelines.settings import Home
from dim_pipelines.testing.networks import MadeNetwork, now_ms

from .conftest import Dim


@pytest.fixture
def node(dim_home: Path, tmp_path: Path) -> Iterator[NodeProcess]:
    trust = format_public_key(public_bytes(load_or_create_key(Home.at(dim_home).user_key)))
    with NodeProcess.start(tmp_path / "n", name="here", trust=[trust], engines=["echo"]) as node:
        yield node


@pytest.fixture
def spec(tmp_path: Path, echo_model: Path) -> Path:
    pq.write_table(pa.table({"a": [1.0, 2.0]}), tmp_path / "rows.parquet")
    path = tmp_path / "spec.yaml"
    path.write_text(json.dumps({"name": "small", "models": [str(echo_model)], "input": str(tmp_path / "rows.parquet")}))
    return path


def test_nodes_at_addresses_are_listed_and_explained(dim: Dim, node: NodeProcess, spec: Path, tmp_path: Path) -> None:
    silent = f"unix:{tmp_path}/no.sock"
    listed = dim("nodes", "--nodes", f"{node.address},{silent}", "--json")
    assert listed.code == 0, listed.err
    by_name = {each["name"]: each for each in listed.record["nodes"]}
    assert by_name["here"]["state"] == "ANSWERS" and by_name["here"]["devices"][0]["id"] == "cpu"
    assert by_name[silent]["state"] == "SILENT" and by_name[silent]["reason"]
    explained = dim("nodes", "explain", spec, "--nodes", f"{node.address},{silent}", "--json")
    assert explained.code == 0, explained.err
    first, second = explained.record["nodes"]
    assert (first["name"], first["feasible"], first["reasons"]) == ("here", True, [])
    assert 0.0 <= first["score"] <= 1.1 and first["parts"]["price"] == 1.0
    assert (second["name"], second["feasible"]) == (silent, False) and second["reasons"]
    shown = dim("nodes", "explain", spec, "--nodes", node.address)
    assert shown.code == 0 and "SCORE" in shown.out and "here" in shown.out
    assert "1 of 1 nodes can take this batch now" in shown.err


def test_a_batch_that_failed_is_explained(dim: Dim, node: NodeProcess, echo_model: Path, tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1.0, 2.0]}), tmp_path / "rows.parquet")
    said = dim("submit", "--model", echo_model, "--input", tmp_path / "rows.parquet", "--no-wait", "--json")
    assert said.code == 0, said.err
    explained = dim("nodes", "explain", said.record["batch"], "--nodes", node.address, "--json")
    assert explained.code == 0, explained.err
    assert explained.record["nodes"][0]["feasible"]


def test_what_is_neither_a_file_nor_a_batch_is_said(dim: Dim, tmp_path: Path) -> None:
    missing = dim("nodes", "explain", "nothing-like-it")
    assert missing.code == 1 and "there is no batch 'nothing-like-it'" in missing.err
    absent = dim("nodes", "explain", tmp_path / "absent.yaml")
    assert absent.code == 1 and "absent.yaml" in absent.err


def test_a_wrong_weight_is_said(dim: Dim, spec: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIM_RANKING", "sped=1")
    said = dim("nodes", "explain", spec)
    assert said.code == 2 and "did you mean speed" in said.err


def test_the_nodes_of_a_network_are_listed_with_their_state_and_past(
    dim: Dim, spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = MadeNetwork(tmp_path / "network")
    home = network.orchestrator.home
    monkeypatch.setenv("DIM_HOME", str(home.root))
    table = NodeTable(open_database(home.database_url))
    names = {}
    for label in ("fine", "poor"):
        member = network.join(label, "node")
        said = Advertisement(
            label=label,
            version="1",
            devices=(AdvertisedDevice(id="cpu", kind="cpu", name="x", memory_bytes=1 << 30),),
            numerics={"echo": "echo/1"},
            max_input_bytes=1 << 20,
            max_sessions=4,
        )
        fields = RecordFields(
            network=network.id, boot=bytes(16), issued_ms=now_ms(), reach="direct", endpoints=("127.0.0.1:9",),
            certificate=member.server().certificate, advertisement=said.encode(),
        )  # fmt: skip
        raw = make_node_record(load_or_create_key(member.home.node_key), fields, 1, now_ms())
        table.offer(read_node_record(raw, member.name), member.member, now_ms())
        table.apply(member.name, Healthy(now_ms()), now_ms())
        names[label] = member.name
    table.apply(names["poor"], Unhealthy("it does not answer"), now_ms())
    table.keep_refusals("b9", {names["poor"]: ["it does not answer"]}, [])
    ReputationTable(open_database(home.database_url)).add(
        {names["fine"]: "echo/1/FP32"}, {names["fine"]: Seen(good=20)}, now_ms()
    )
    listed = dim("nodes", "--json")
    assert listed.code == 0, listed.err
    assert listed.record["network"] == network.id
    fine, poor = listed.record["nodes"]
    assert (fine["name"], fine["node"], fine["state"], fine["reach"]) == ("fine", names["fine"], "ELIGIBLE", "direct")
    assert fine["reputations"]["echo/1/FP32"].startswith("0.6")
    assert (poor["state"], poor["reason"]) == ("SUSPECT", "it does not answer")
    assert poor["last_batches"][0]["batch"] == "b9" and not poor["last_batches"][0]["chosen"]
    shown = dim("nodes")
    assert "SUSPECT" in shown.out and "it does not answer" in shown.out
    explained = dim("nodes", "explain", spec, "--json")
    assert explained.code == 0, explained.err
    assert {each["name"]: each["reasons"] for each in explained.record["nodes"]} == {
        "fine": [],
        "poor": ["it does not answer"],
    }
    network.revoke(names["fine"], "it lied")
    explained = dim("nodes", "explain", spec, "--json")
    assert {each["name"]: each["reasons"] for each in explained.record["nodes"]}["fine"] == ["revoked: it lied"]


def test_a_nodes_home_asks_an_orchestrator_and_says_when_none_answers(
    dim: Dim, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = MadeNetwork(tmp_path / "network", addresses=("127.0.0.1:9",))
    monkeypatch.setenv("DIM_HOME", str(network.join("ann", "node").home.root))
    said = dim("nodes")
    assert said.code == 1 and said.err.startswith("error: no orchestrator of the network answers: "), said.err
    assert said.err.count("\n") == 2 and "hint: dim orchestrator list" in said.err
