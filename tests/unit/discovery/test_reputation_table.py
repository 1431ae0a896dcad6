"""Reputations last, are kept apart by numerics class, and no report is lost between two writers."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from dim_pipelines.database.engine import Database, open_database
from dim_pipelines.discovery.reputation_table import ReputationTable
from dim_pipelines.scheduling.reputation import EARN_MS, Seen, score

NOW = 1_800_000_000_000
CLASS, OTHER = "echo/1/FP32", "echo/2/FP32"


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = open_database(f"sqlite:///{tmp_path / 'dim.db'}")
    yield opened
    opened.close()


@pytest.fixture
def table(database: Database) -> ReputationTable:
    return ReputationTable(database)


def test_strangers_are_left_out(table: ReputationTable) -> None:
    assert table.get({}) == {}
    assert table.get({"k51a": CLASS}) == {}
    assert table.of_node("k51a") == {}


def test_what_was_seen_is_there_again_after_a_restart(
    table: ReputationTable, database: Database, tmp_path: Path
) -> None:
    table.add({"k51a": CLASS}, {"k51a": Seen(good=10, rows=100, seconds=2.0)}, NOW)
    table.add({"k51a": CLASS}, {"k51a": Seen(bad=1, last="it broke")}, NOW + EARN_MS)
    database.close()
    again = ReputationTable(open_database(f"sqlite:///{tmp_path / 'dim.db'}"))
    found = again.get({"k51a": CLASS})["k51a"]
    assert (found.bad, found.last, found.rows_per_s, found.at_ms) == (1.0, "it broke", 50.0, NOW + EARN_MS)
    assert 0.99 < found.good <= 1.0


def test_classes_of_a_node_are_kept_apart(table: ReputationTable) -> None:
    table.add({"k51a": CLASS, "k51b": OTHER}, {"k51a": Seen(good=10), "k51b": Seen(good=10)}, NOW)
    table.add({"k51a": OTHER}, {"k51a": Seen(bad=3)}, NOW)
    found = table.of_node("k51a")
    assert list(found) == [CLASS, OTHER]
    assert score(found[CLASS], NOW) > 0.5 > score(found[OTHER], NOW)
    assert table.get({"k51a": OTHER, "k51b": CLASS}).keys() == {"k51a"}


def test_many_nodes_are_asked_about_at_once(table: ReputationTable) -> None:
    names = {f"k51{number}": CLASS for number in range(1000)}
    table.add(names, {name: Seen(good=1) for name in names}, NOW)
    assert table.get(names).keys() == names.keys()


def test_two_writers_lose_nothing(table: ReputationTable) -> None:
    def report() -> None:
        for _ in range(20):
            table.add({"k51a": CLASS, "k51b": CLASS}, {"k51b": Seen(bad=1), "k51a": Seen(bad=1)}, NOW)

    threads = [threading.Thread(target=report) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {name: found.bad for name, found in table.get({"k51a": CLASS, "k51b": CLASS}).items()} == {
        "k51a": 60.0,
        "k51b": 60.0,
    }
