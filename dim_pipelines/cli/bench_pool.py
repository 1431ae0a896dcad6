"""What a thousand nodes in the table cost those who look at them: the sensor of Dagster, and a batch that ranks."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from dim_pipelines.cli.bench_records import NUMERICS, model, paper_nodes
from dim_pipelines.domain.ipns import ipns_name

if TYPE_CHECKING:
    from dim_pipelines.discovery.node_table import NodeRow, NodeTable


@dataclass(frozen=True, slots=True)
class Looked:
    """Seconds that a look at the table took (medians).

    Attributes:
        tick_s: the sensor's rule over the whole table, to which every node is news.
        idle_tick_s: the same when nothing has changed.
        ranking_s: feasibility and rank of all nodes for one batch.
    """

    tick_s: float
    idle_tick_s: float
    ranking_s: float


def measure_looks(nodes: int, rounds: int) -> Looked:
    """Fill a table with nodes that answer, and look at it as the sensor and as a batch do."""
    from dim_pipelines.sensors.ipns_nodes import Told, find_news

    now_ms = time.time_ns() // 1_000_000
    with _table(nodes, now_ms) as table:

        def tick(told: Told) -> Told:
            return find_news(table.rows(), told, [], now_ms, quorum=1, slots=4).told

        told = Told()
        for _ in range(nodes):  # so often at most, fifty changes a time
            before, told = told, tick(told)
            if before == told:
                break
        present = [row.label for row in table.rows()]

        def idle() -> None:
            find_news(table.rows(), told, present, now_ms, quorum=1, slots=4)

        def first() -> None:
            tick(Told())

        ranking = _ranking(table.rows(), now_ms)
        return Looked(_median(first, rounds), _median(idle, rounds), _median(ranking, rounds))


def _median(work: Callable[[], object], rounds: int) -> float:
    taken = []
    for _ in range(rounds):
        begun = time.perf_counter()
        work()
        taken.append(time.perf_counter() - begun)
    return statistics.median(taken)


@contextmanager
def _table(nodes: int, now_ms: int) -> Iterator[NodeTable]:
    from dim_pipelines.database.engine import open_database
    from dim_pipelines.discovery.node_states import Healthy
    from dim_pipelines.discovery.node_table import NodeTable
    from dim_pipelines.discovery.record import read_node_record

    with tempfile.TemporaryDirectory(prefix="dim-bench-") as scratch:
        database = open_database(f"sqlite:///{Path(scratch) / 'dim.db'}")
        try:
            table, network = NodeTable(database), ipns_name(bytes(32))
            for each in paper_nodes(nodes, now_ms):
                record = read_node_record(each.record(network, now_ms, now_ms), each.name)
                table.offer(record, each.member, now_ms)
                table.apply(each.name, Healthy(now_ms), now_ms)
            yield table
        finally:
            database.close()


def _ranking(rows: list[NodeRow], now_ms: int) -> Callable[[], object]:
    from dim_pipelines.dispatch.candidates import explain_nodes
    from dim_pipelines.dispatch.node_pool import PoolNode
    from dim_pipelines.domain.node import numerics_class
    from dim_pipelines.scheduling.attendance import Presence
    from dim_pipelines.scheduling.feasibility import Need
    from dim_pipelines.scheduling.ranking import Weights

    looked = [
        PoolNode(row.name, row.label, Presence.READY, row.state, node=row.description, sessions=number % 8)
        for number, row in enumerate(rows)
    ]
    need = Need(
        models=(("torch", "float32"),),
        numerics=numerics_class(NUMERICS, "float32"),
        packages=(model(7),),
        licences=("Apache-2.0",),
        owner="ada",
    )
    weights, random = Weights(), Random(1)
    return lambda: explain_nodes(looked, need, swarm="", weights=weights, reputations={}, now_ms=now_ms, random=random)
