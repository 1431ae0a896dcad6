"""The table of nodes: marks, labels, changes, and what several processes write."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dim_pipelines.database.engine import Database, open_database
from dim_pipelines.discovery.judgement import mark_of
from dim_pipelines.discovery.node_states import Healthy, RecordRefused, Tick, Unhealthy
from dim_pipelines.discovery.node_table import KEPT_REFUSALS, NodeTable
from dim_pipelines.discovery.record import NodeRecord, make_node_record, read_node_record
from dim_pipelines.domain.advertisement import Advertisement, RecordFields
from dim_pipelines.domain.ipns import ipns_name
from dim_pipelines.domain.roster import Member
from dim_pipelines.errors import RolledBack
from dim_pipelines.identity.keys import public_bytes

NOW = 1_800_000_000_000
NETWORK = ipns_name(bytes(32))


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = open_database(f"sqlite:///{tmp_path / 'dim.db'}")
    yield opened
    opened.close()


@pytest.fixture
def table(database: Database) -> NodeTable:
    return NodeTable(database)


class Node:
    """A key that signs records."""

    def __init__(self, label: str) -> None:
        self.key = Ed25519PrivateKey.generate()
        self.name = ipns_name(public_bytes(self.key))
        self.label = label
        self.member = Member(
            key=public_bytes(self.key), roles=("node",), owner="ada", label="as admitted", admitted_ms=NOW
        )

    def record(self, sequence: int, **said: Any) -> NodeRecord:
        ad: dict[str, Any] = {"label": self.label, "version": "1", "devices": (), "numerics": {}}
        ad |= {"max_input_bytes": 1, "max_sessions": 1}
        fields: dict[str, Any] = {
            "boot": bytes(16), "issued_ms": sequence, "reach": "direct", "endpoints": ("192.0.2.7:1",),
            "certificate": b"certificate",
        }  # fmt: skip
        ad |= {key: value for key, value in said.items() if key in Advertisement.model_fields}
        fields |= {key: value for key, value in said.items() if key in RecordFields.model_fields}
        whole = RecordFields(network=NETWORK, advertisement=Advertisement(**ad).encode(), **fields)
        return read_node_record(make_node_record(self.key, whole, sequence, NOW), self.name)


def test_an_accepted_record_is_there_again_after_a_restart(database: Database, tmp_path: Path) -> None:
    node = Node("gpu-1")
    record = node.record(7)
    NodeTable(database).offer(record, node.member, NOW)
    NodeTable(database).apply(node.name, Healthy(NOW), NOW + 1)
    database.close()
    again = NodeTable(open_database(f"sqlite:///{tmp_path / 'dim.db'}"))
    row = again.row(node.name)
    assert row is not None and row.record is not None
    assert (row.state, row.label, row.owner, row.reach, row.since_ms) == ("ELIGIBLE", "gpu-1", "ada", "direct", NOW + 1)
    assert row.raw == record.raw and row.expires_ms == record.expires_ms
    assert again.mark(node.name) == mark_of(record)
    assert row.description.name == "gpu-1" and row.description.id == node.name and row.description.owner == "ada"
    with pytest.raises(RolledBack):
        again.offer(node.record(6), node.member, NOW)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])  # a key of its own each time
@given(st.lists(st.tuples(st.integers(1, 8), st.sampled_from(["a", "b"])), max_size=15))
def test_no_sequence_of_records_lowers_a_high_water_mark(table: NodeTable, offers: list[tuple[int, str]]) -> None:
    node = Node("gpu")
    highest: NodeRecord | None = None
    for sequence, version in offers:
        record = node.record(sequence, version=version)
        newer = highest is None or sequence > highest.sequence
        if newer or (highest is not None and record.digest == highest.digest):
            table.offer(record, node.member, NOW)
            highest = record if newer else highest
        else:
            with pytest.raises(RolledBack):
                table.offer(record, node.member, NOW)
        assert highest is not None and table.mark(node.name) == mark_of(highest)


def test_a_label_is_unique_and_stays(table: NodeTable) -> None:
    first, second = Node("gpu"), Node("gpu")
    assert table.offer(first.record(1), first.member, NOW).label == "gpu"
    longer = f"gpu-{second.name[-5:]}"
    assert table.offer(second.record(1), second.member, NOW).label == longer
    assert table.offer(second.record(2), second.member, NOW).label == longer
    assert table.offer(first.record(2, label="other"), first.member, NOW).label == "other"
    assert table.offer(second.record(3), second.member, NOW).label == longer  # what it is called does not jump
    row = table.row(second.name)
    assert row is not None and row.description.name == longer


def test_a_label_of_strange_characters_becomes_one_line(table: NodeTable) -> None:
    node = Node("gpu\n\x1b[31m1" + "x" * 300)
    row = table.offer(node.record(1), node.member, NOW)
    assert row.label.isprintable() and len(row.label) <= 100


def test_changes_are_numbered_and_a_renewal_is_none(table: NodeTable) -> None:
    node, other = Node("gpu"), Node("cpu")
    table.offer(node.record(1), node.member, NOW)
    table.offer(other.record(1), other.member, NOW)
    cursor = table.last_change()
    renewed = table.offer(node.record(2), node.member, NOW)
    assert renewed.sequence == 2 and table.changed_since(cursor) == []
    table.offer(node.record(3, paused=True), node.member, NOW)
    table.apply(other.name, Healthy(NOW), NOW)
    assert [row.label for row in table.changed_since(cursor)] == ["gpu", "cpu"]
    assert [row.label for row in table.changed_since(cursor, limit=1)] == ["gpu"]
    cursor = table.last_change()
    table.apply(other.name, Healthy(NOW + 1), NOW + 1)
    table.apply(other.name, RecordRefused("forged"), NOW + 1)
    assert table.last_change() == cursor


def test_a_moved_node_has_to_answer_anew(table: NodeTable) -> None:
    node = Node("gpu")
    table.offer(node.record(1), node.member, NOW)
    table.apply(node.name, Healthy(NOW), NOW)
    assert table.offer(node.record(2), node.member, NOW).state == "ELIGIBLE"
    assert table.offer(node.record(3, endpoints=("192.0.2.7:2",)), node.member, NOW).state == "VERIFIED"
    table.apply(node.name, Healthy(NOW + 1), NOW + 1)
    assert table.offer(node.record(4, endpoints=("192.0.2.7:2",), boot=b"1" * 16), node.member, NOW).state == "VERIFIED"


def test_nobody_gets_a_row_by_an_event(table: NodeTable) -> None:
    assert table.apply(Node("x").name, Healthy(NOW), NOW) is None
    assert table.set_relay(Node("x").name, NETWORK) is None
    assert table.rows() == [] and table.mark(Node("x").name) is None


def test_a_node_without_a_record_offers_nothing(table: NodeTable) -> None:
    node = Node("gpu")
    row = table.see(node.name, node.member, NOW)
    assert row.state == "SEEN" and row.record is None and row.description.devices == ()
    assert row.description.key == node.member.key
    assert table.see(node.name, node.member, NOW + 1) == row


def test_an_attached_node_hangs_on_an_orchestrator(table: NodeTable) -> None:
    node, other = Node("gpu"), ipns_name(b"1" * 32)
    said = {"reach": "attached", "endpoints": ()}
    assert table.offer(node.record(1, **said, attached_to=(NETWORK,)), node.member, NOW).relay == NETWORK
    assert table.offer(node.record(2, **said, attached_to=(NETWORK, other)), node.member, NOW).relay == NETWORK
    cursor = table.last_change()
    row = table.set_relay(node.name, other)
    assert row is not None and row.relay == other and [each.name for each in table.changed_since(cursor)] == [node.name]
    assert table.offer(node.record(3, **said, attached_to=(NETWORK, other)), node.member, NOW).relay == other
    assert table.offer(node.record(4), node.member, NOW).relay is None


def test_rows_by_state_and_records_that_have_ended(table: NodeTable) -> None:
    good, lost = Node("a"), Node("b")
    for node in (good, lost):
        table.offer(node.record(1), node.member, NOW)
        table.apply(node.name, Healthy(NOW), NOW)
    table.apply(lost.name, Unhealthy("silent"), NOW)
    assert [row.label for row in table.rows()] == ["a", "b"]
    assert [row.label for row in table.rows(["SUSPECT"])] == ["b"]
    assert table.ended(NOW + 179_999) == [] and set(table.ended(NOW + 180_000)) == {good.name, lost.name}
    table.apply(lost.name, Tick(), NOW + 180_000)
    assert table.ended(NOW + 180_000) == [good.name]


def test_a_run_worker_in_another_process_says_what_it_lost(table: NodeTable, tmp_path: Path) -> None:
    node = Node("gpu")
    table.offer(node.record(1), node.member, NOW)
    table.apply(node.name, Healthy(NOW), NOW)
    program = f"""
    from dim_pipelines.database.engine import open_database
    from dim_pipelines.discovery.node_table import NodeTable
    NodeTable(open_database({f"sqlite:///{tmp_path / 'dim.db'}"!r})).lost({node.name!r}, "the session broke")
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True, timeout=60)
    row = table.row(node.name)
    assert row is not None and (row.state, row.reason) == ("SUSPECT", "the session broke")


def test_why_batches_were_not_given_to_a_node_is_kept_for_a_while(table: NodeTable) -> None:
    for number in range(KEPT_REFUSALS + 5):
        table.keep_refusals(f"batch-{number}", {"one": ["no GPU"], "two": []}, {"two"})
    kept = table.refusals("one", limit=1000)
    assert len(kept) == KEPT_REFUSALS and kept[0].batch == f"batch-{KEPT_REFUSALS + 4}"
    assert kept[0].reasons == ("no GPU",) and not kept[0].chosen
    assert table.refusals("two")[0].chosen and len(table.refusals("two")) == 10
    table.keep_refusals("none", {}, ())
