"""What a node, and the whole pool, look like in Dagster: keys that it takes, and metadata for people."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from dim_pipelines.assets.nodes import (
    SHOWN_NODES,
    describe_node,
    describe_pool,
    is_available,
    node_partitions,
    node_pool,
    nodes,
    partition_key,
)
from dim_pipelines.assets.pool_checks import judge_quorum, quorum, stale_records
from dim_pipelines.database.engine import open_database
from dim_pipelines.discovery.node_states import Revoked, Unhealthy
from dim_pipelines.domain.roster import Member
from dim_pipelines.orchestrator.network_view import NetworkView
from dim_pipelines.testing.known_nodes import NETWORK, KnownNodes

NOW = 1_700_000_000_000


@pytest.fixture
def known(tmp_path: Path) -> Iterator[KnownNodes]:
    database = open_database(f"sqlite:///{tmp_path / 'dim.db'}")
    yield KnownNodes(database)
    database.close()


def _said(event: dg.AssetMaterialization) -> dict[str, Any]:
    return {key: value.value for key, value in event.metadata.items()}


def test_a_node_shows_what_it_is_and_how_it_is_reached(known: KnownNodes) -> None:
    row = known.join("ann", NOW, price=7, labels={"site": "attic"}, hours="22:00-07:00")
    event = describe_node(row)
    said = _said(event)

    assert (event.asset_key, event.partition, event.description) == (nodes.key, "ann", "ann is ELIGIBLE")
    assert (said["dim/state"], said["dim/reason"], said["dim/name"]) == ("ELIGIBLE", "-", known.name("ann"))
    assert (said["dim/owner"], said["dim/reach"]) == ("ada", "direct at 192.0.2.7:4443")
    assert [record.data for record in said["dim/devices"].records] == [
        {"device": "cpu", "name": "a small CPU", "memory": "8.0 GiB"}
    ]
    assert (said["dim/price"], said["dim/labels"], said["dim/hours"]) == (7, {"site": "attic"}, "22:00-07:00")
    assert (said["dim/paused"], said["dim/engines"]) == (False, "echo")
    assert said["dim/since"] == NOW / 1000


def test_a_lost_node_shows_why(known: KnownNodes) -> None:
    known.join("ann", NOW)
    row = known.happen("ann", Unhealthy("it does not answer health checks: no answer in 2 s"), NOW + 1000)

    assert describe_node(row).description == "ann is SUSPECT: it does not answer health checks: no answer in 2 s"
    assert not is_available(row)


def test_an_attached_node_names_its_orchestrator(known: KnownNodes) -> None:
    said = _said(describe_node(known.join("ann", NOW, reach="attached")))

    assert said["dim/reach"] == f"attached to …{NETWORK[-8:]}"


def test_a_member_that_was_never_heard_of_has_a_partition_too(known: KnownNodes) -> None:
    member = Member(key=bytes(32), roles=("node",), owner="ben", label="bob", admitted_ms=NOW)
    row = known.table.see(NETWORK, member, NOW)
    event = describe_node(row)

    assert (event.partition, _said(event)["dim/state"]) == (f"bob-{NETWORK[-5:]}", "SEEN")
    assert "dim/devices" not in event.metadata


@pytest.mark.parametrize("label", ["gpu box 7", "ann@attic:2", "zoë", "rack-1.row+2_x", "192.168.0.1"])
def test_a_fit_label_is_the_key(known: KnownNodes, label: str) -> None:
    assert partition_key(known.join(label, NOW)) == label


@pytest.mark.parametrize("label", ["a...b", "a....b", "[a]", "a,b", "a|b", '"a"', "*", "a/b", "<script>"])
def test_a_label_that_dagster_would_misread_gets_a_key_of_its_own(known: KnownNodes, label: str) -> None:
    row = known.join("x", NOW, label=label)
    key = partition_key(row)

    assert key != label
    assert key.endswith(known.name("x")[-8:])
    assert not set(key) & set(',|"*/[]<>')
    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions(str(node_partitions.name), [key])
        instance.report_runless_asset_event(describe_node(row))
        assert instance.get_materialized_partitions(nodes.key) == {key}


def test_keys_stay_different_where_labels_differ_only_in_what_dagster_refuses(known: KnownNodes) -> None:
    keys = {partition_key(known.join(str(number), NOW, label=label)) for number, label in enumerate(["a,b", "a|b"])}

    assert len(keys) == 2


def test_the_pool_lists_first_who_needs_attention(known: KnownNodes) -> None:
    known.join("ann", NOW)
    known.join("ben", NOW, paused=True)
    known.join("cid", NOW)
    known.publish("dan", NOW)
    known.join("eve", NOW)
    known.happen("cid", Unhealthy("no answer"), NOW + 1000)
    known.happen("eve", Revoked("left"), NOW + 2000)
    event = describe_pool(known.table.rows(), NOW + 301_000, 4)
    said = _said(event)

    assert event.description == "1 available; 1 VERIFIED, 2 ELIGIBLE, 1 SUSPECT, 1 GONE"
    assert (said["dim/available"], said["dim/suspect"], said["dim/seen"], said["dim/devices"]) == (1, 1, 0, 1)
    assert (said["dim/memory_gib"], said["dim/batches_at_a_time"]) == (8.0, 4)
    listed = [(each.data["node"], each.data["state"], each.data["reason"]) for each in said["dim/nodes"].records]
    assert [node for node, _, _ in listed] == ["cid", "dan", "ann", "ben", "eve"]
    assert listed[0] == ("cid", "SUSPECT", "no answer")
    assert listed[3] == ("ben", "ELIGIBLE", "paused")
    assert listed[4] == ("eve", "GONE", "revoked: left")
    assert {each.data["node"]: each.data["for"] for each in said["dim/nodes"].records} == {
        **dict.fromkeys(("ann", "ben", "cid", "dan"), "5 min"),
        "eve": "4 min",
    }


def test_an_empty_pool_says_so(known: KnownNodes) -> None:
    event = describe_pool([], NOW, 0)

    assert event.description == "0 available; no nodes"
    assert _said(event)["dim/batches_at_a_time"] == 0


def test_a_large_pool_is_listed_in_part(known: KnownNodes) -> None:
    for number in range(SHOWN_NODES + 3):
        known.publish(f"n{number:02}", NOW)
    said = _said(describe_pool(known.table.rows(), NOW, 4))

    assert len(said["dim/nodes"].records) == SHOWN_NODES
    assert (said["dim/not_listed"], said["dim/verified"]) == (3, SHOWN_NODES + 3)


def test_a_network_may_want_more_nodes_than_one(known: KnownNodes) -> None:
    known.join("ann", NOW)

    assert judge_quorum(known.table.rows(), 1).passed
    finding = judge_quorum(known.table.rows(), 2)
    assert (finding.passed, finding.words) == (False, "1 of 1 known nodes take work; at least 2 should")
    assert judge_quorum([], 0).passed


def test_the_checks_can_be_run_by_hand(known: KnownNodes) -> None:
    known.join("ann", NOW)  # years ago: its record has long run out
    with dg.DagsterInstance.ephemeral() as instance:
        result = dg.materialize(
            [nodes, node_pool, quorum, stale_records],
            selection=dg.AssetSelection.checks(quorum, stale_records),
            instance=instance,
            resources={"network": NetworkView(NETWORK, known.table, quorum=2)},
        )
    found = {each.check_name: (each.passed, each.severity) for each in result.get_asset_check_evaluations()}

    assert found == {
        "quorum": (False, dg.AssetCheckSeverity.ERROR),
        "stale_records": (False, dg.AssetCheckSeverity.WARN),
    }
