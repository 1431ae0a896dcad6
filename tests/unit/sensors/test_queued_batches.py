"""The sensor: each request is handed over once, few at a time, and nothing is done when nothing waits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from dim_pipelines.database.engine import Database, open_database
from dim_pipelines.domain.batch import BatchSpec
from dim_pipelines.orchestrator.batches import Batches
from dim_pipelines.sensors.queued_batches import MAX_RUNS_PER_TICK, queued_batches, read_cursor

SPEC = BatchSpec.read({"name": "digits", "models": ["m"], "input": "rows.csv"})


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = open_database(f"sqlite:///{tmp_path / 'dim.db'}")
    yield opened
    opened.close()


def _tick(database: Database, cursor: str | None) -> tuple[list[dg.RunRequest], list[str], str | None]:
    context = dg.build_sensor_context(cursor=cursor)
    answer = queued_batches(context, database=database)
    assert isinstance(answer, dg.SensorResult)
    added = [key for request in answer.dynamic_partitions_requests or [] for key in request.partition_keys]
    return list(answer.run_requests or []), added, answer.cursor


def test_a_waiting_batch_gets_its_partition_and_its_run(database: Database) -> None:
    Batches(database).submit(SPEC, batch_id="b1")
    (request,), added, _ = _tick(database, None)

    assert (request.run_key, request.partition_key, added) == ("b1:1", "b1", ["b1"])
    assert request.tags == {"dim/batch": "b1", "dim/owner": "local", "dim/name": "digits"}


def test_a_batch_is_asked_for_once(database: Database) -> None:
    Batches(database).submit(SPEC, batch_id="b1")
    _, _, cursor = _tick(database, None)

    assert _tick(database, cursor) == ([], [], cursor)


def test_a_resumed_batch_is_asked_for_again(database: Database) -> None:
    batches = Batches(database)
    batches.submit(SPEC, batch_id="b1")
    _, _, cursor = _tick(database, None)
    batches.take_epoch("b1", "somebody")
    _, _, cursor = _tick(database, cursor)
    batches.resume("b1")
    (request,), _, _ = _tick(database, cursor)

    assert request.run_key == "b1:2"


def test_many_batches_are_handed_over_a_page_at_a_time(database: Database) -> None:
    batches = Batches(database)
    for number in range(MAX_RUNS_PER_TICK + 5):
        batches.submit(SPEC, batch_id=f"b{number}")
    first, _, cursor = _tick(database, None)
    second, _, cursor = _tick(database, cursor)
    third, _, _ = _tick(database, cursor)

    assert (len(first), len(second), len(third)) == (MAX_RUNS_PER_TICK, 5, 0)
    assert len({request.run_key for request in first + second}) == MAX_RUNS_PER_TICK + 5


def test_the_cursor_forgets_batches_that_have_begun(database: Database) -> None:
    batches = Batches(database)
    batches.submit(SPEC, batch_id="b1")
    _, _, cursor = _tick(database, None)
    batches.take_epoch("b1", "somebody")
    _, _, cursor = _tick(database, cursor)

    assert cursor == "[]"


def test_a_batch_that_nobody_asked_to_run_is_left_alone(database: Database) -> None:
    Batches(database).submit(SPEC, batch_id="b1", run=False)

    assert _tick(database, None)[0] == []


@pytest.mark.parametrize("cursor", [None, "", "nonsense", "7", '{"a": 1}', "[1, 2]"])
def test_a_foreign_cursor_is_an_empty_one(cursor: str | None) -> None:
    assert list(read_cursor(cursor)) == []


def test_the_sensor_runs_by_default() -> None:
    assert queued_batches.default_status is dg.DefaultSensorStatus.RUNNING
    assert queued_batches.minimum_interval_seconds == 5
