"""What every batch's row promises to dispatch: SQL and its twin in memory."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from dim_pipelines.database.engine import open_database
from dim_pipelines.dispatch.head import BatchHead, Head
from dim_pipelines.domain.batch import BatchSpec
from dim_pipelines.domain.cid import RAW, Cid
from dim_pipelines.errors import InputError, StaleEpoch
from dim_pipelines.orchestrator.batches import Batches
from dim_pipelines.testing.batches import MemoryBatchHead

ONE, TWO = Cid.of(RAW, b"1"), Cid.of(RAW, b"2")


@pytest.fixture(params=["memory", "sqlite"])
def row(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[BatchHead]:
    if request.param == "memory":
        yield MemoryBatchHead("b1", "b2")
        return
    database = open_database(f"sqlite:///{tmp_path / 'dim.db'}")
    batches = Batches(database)
    for batch in ("b1", "b2"):
        batches.submit(BatchSpec.read({"name": "x", "models": ["m"], "input": "i"}), batch_id=batch)
    yield batches
    database.close()


def test_epochs_rise_by_one_per_batch(row: BatchHead) -> None:
    assert row.take_epoch("b1", "one") == Head(1)
    assert row.take_epoch("b1", "two") == Head(2)
    assert row.take_epoch("b2", "one") == Head(1)


def test_the_next_run_finds_what_the_last_one_kept(row: BatchHead) -> None:
    row.take_epoch("b1", "one")
    row.keep_numerics("b1", 1, "torch/FP32")
    row.move_head("b1", 1, ONE)
    row.move_head("b1", 1, TWO)
    assert row.take_epoch("b1", "two") == Head(2, TWO, "torch/FP32")


def test_an_overtaken_run_changes_nothing(row: BatchHead) -> None:
    row.take_epoch("b1", "one")
    row.move_head("b1", 1, ONE)
    row.take_epoch("b1", "two")
    for attempt in (
        lambda: row.move_head("b1", 1, TWO),
        lambda: row.keep_numerics("b1", 1, "other"),
        lambda: row.finish("b1", 1, ONE, TWO),
        lambda: row.move_head("b1", 3, TWO),
        lambda: row.heartbeat("b1", 1),
    ):
        with pytest.raises(StaleEpoch, match="b1"):
            attempt()
    assert row.take_epoch("b1", "three") == Head(3, ONE, None)


def test_a_finished_batch_can_be_run_again(row: BatchHead) -> None:
    row.take_epoch("b1", "one")
    row.move_head("b1", 1, ONE)
    row.finish("b1", 1, ONE, TWO)
    assert row.take_epoch("b1", "two") == Head(2, ONE)
    row.finish("b1", 2, ONE, TWO)


def test_an_unknown_batch_is_an_input_error(row: BatchHead) -> None:
    with pytest.raises(InputError, match="no batch"):
        row.take_epoch("nothing", "me")
    with pytest.raises(InputError, match="no batch"):
        row.move_head("nothing", 1, ONE)


def test_every_epoch_is_given_out_once(row: BatchHead) -> None:
    taken: list[int] = []

    def take() -> None:
        taken.extend(row.take_epoch("b1", "me").epoch for _ in range(10))

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == list(range(1, 41))
