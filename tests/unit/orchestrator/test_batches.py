"""The table of batches."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dim_pipelines.database.engine import Database, open_database
from dim_pipelines.domain.batch import BatchSpec
from dim_pipelines.domain.cid import RAW, Cid
from dim_pipelines.errors import InputError, StaleEpoch
from dim_pipelines.orchestrator.batches import Batches, submit_batch

SPEC = {"name": "x", "models": ["m"], "input": "i.csv", "shard_rows": 5}
ONE, TWO = Cid.of(RAW, b"1"), Cid.of(RAW, b"2")


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = open_database(f"sqlite:///{tmp_path / 'dim.db'}")
    yield database
    database.close()


@pytest.fixture
def batches(database: Database) -> Batches:
    return Batches(database)


def test_a_submitted_batch_is_read_back(database: Database, batches: Batches) -> None:
    row = submit_batch(database, SPEC, output="/tmp/out.parquet")
    assert batches.get(row.id) == row
    assert row.spec == BatchSpec.read(SPEC)
    assert (row.owner, row.state, row.request, row.epoch, row.output) == ("local", "queued", 1, 0, "/tmp/out.parquet")
    assert (row.run_key, row.batch.id, row.batch.spec) == (f"{row.id}:1", row.id, row.spec)
    assert row.created_ms == row.updated_ms > 0


def test_the_same_id_is_the_same_batch_only_with_the_same_spec_and_owner(database: Database) -> None:
    first = submit_batch(database, SPEC, batch_id="mine")
    assert submit_batch(database, SPEC, batch_id="mine") == first
    with pytest.raises(InputError, match="exists already"):
        submit_batch(database, {**SPEC, "shard_rows": 6}, batch_id="mine")
    with pytest.raises(InputError, match="exists already"):
        submit_batch(database, SPEC, batch_id="mine", owner="eve")
    with pytest.raises(InputError, match="unknown key"):
        submit_batch(database, {**SPEC, "shard_row": 6})


@pytest.mark.parametrize("bad", ["..", "a/b", "-a", "a" * 101, "a b", "ä"])
def test_ids_are_safe_as_file_names(database: Database, bad: str) -> None:
    with pytest.raises(InputError, match="not a batch id"):
        submit_batch(database, SPEC, batch_id=bad)


def test_owners_see_their_own_batches(database: Database, batches: Batches) -> None:
    submit_batch(database, SPEC, batch_id="a", owner="ann")
    submit_batch(database, SPEC, batch_id="b", owner="bob")
    assert [row.id for row in batches.list(owner="ann")] == ["a"]
    assert batches.list() == []
    with pytest.raises(InputError, match="no batch 'b'"):
        batches.get("b", owner="ann")


def test_the_queue_holds_what_was_asked_for_by_priority_and_age(database: Database, batches: Batches) -> None:
    submit_batch(database, SPEC, batch_id="first")
    submit_batch(database, SPEC, batch_id="second")
    submit_batch(database, {**SPEC, "priority": 5}, batch_id="urgent")
    submit_batch(database, SPEC, batch_id="waits", run=False)
    assert [row.id for row in batches.queued()] == ["urgent", "first", "second"]
    assert [row.id for row in batches.queued(limit=1)] == ["urgent"]
    batches.take_epoch("first", "me")
    assert batches.resume("waits").run_key == "waits:1"
    assert [row.id for row in batches.queued()] == ["urgent", "second", "waits"]


def test_a_batch_lives_through_its_states(database: Database, batches: Batches) -> None:
    submit_batch(database, SPEC, batch_id="b")
    batches.take_epoch("b", "host/1")
    batches.keep_dataset("b", ONE, None)
    batches.keep_run("b", "run-1")
    batches.heartbeat("b", 1)
    assert batches.fail("b", "it broke", holder="host/1")
    row = batches.get("b")
    assert (row.state, row.error, row.dataset, row.errors, row.run_id, row.holder) == (
        "failed", "it broke", ONE, None, "run-1", "host/1",
    )  # fmt: skip
    assert batches.resume("b").request == 2
    batches.take_epoch("b", "host/2")
    batches.move_head("b", 2, TWO)
    batches.keep_dataset("b", ONE, TWO)
    batches.finish("b", 2, ONE, TWO)
    batches.keep_output("b", "/tmp/x")
    row = batches.get("b")
    assert (row.state, row.result, row.provenance, row.error, row.head, row.errors, row.output) == (
        "done", ONE, TWO, None, TWO, TWO, "/tmp/x",
    )  # fmt: skip
    assert batches.resume("b") == row


def test_how_an_overtaken_run_ended_is_not_stored(database: Database, batches: Batches) -> None:
    submit_batch(database, SPEC, batch_id="b")
    epoch = batches.take_epoch("b", "one").epoch
    batches.take_epoch("b", "two")
    assert not batches.fail("b", "it broke", holder="one")
    assert not batches.cancel("b", holder="one")
    with pytest.raises(StaleEpoch):
        batches.heartbeat("b", epoch)
    assert batches.get("b").state == "running"
    assert batches.cancel("b", holder="two")
    assert batches.get("b").state == "cancelled"


def test_an_overtaken_run_does_not_undo_a_finished_batch(database: Database, batches: Batches) -> None:
    submit_batch(database, SPEC, batch_id="b")
    batches.take_epoch("b", "one")
    epoch = batches.take_epoch("b", "two").epoch
    batches.finish("b", epoch, ONE, TWO)
    assert not batches.fail("b", "a newer run has taken over", holder="one")
    assert batches.get("b").state == "done"


def test_unknown_batches(batches: Batches) -> None:
    for attempt in (lambda: batches.keep_run("x", "r"), lambda: batches.resume("x"), lambda: batches.heartbeat("x", 1)):
        with pytest.raises(InputError, match="no batch"):
            attempt()
