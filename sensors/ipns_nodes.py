"""The sensor `ipns_nodes`: mirrors the node table into Dagster, and lets batches wait while no node can compute.

The table is the truth; the cursor only says what Dagster was told already. A lost cursor or a repeated tick tells it
again. Nothing here decides about nodes: the orchestrator does, or, where none runs, the survey.
"""

import json
import logging
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Final

import dagster as dg

from dim_pipelines.assets.nodes import describe_node, describe_pool, is_available, node_partitions, partition_key
from dim_pipelines.assets.pool_checks import Finding, judge_quorum, judge_records
from dim_pipelines.database.engine import Database
from dim_pipelines.discovery.node_table import NodeRow
from dim_pipelines.dispatch.portal import Portal
from dim_pipelines.errors import DimError
from dim_pipelines.orchestrator.batches import Batches
from dim_pipelines.orchestrator.dagster_daemon import (
    configured_concurrency,
    free_lost_slots,
    lift_pool,
    limit_pool,
)
from dim_pipelines.orchestrator.dagster_instance import NODE_PARTITIONS
from dim_pipelines.orchestrator.network_view import NetworkView

MAX_CHANGES: Final = 50
"""How many nodes' changes, and how many of their partitions, one tick tells: each costs Dagster's daemon some 15 ms."""
SNAPSHOT_MS: Final = 60_000
"""The least time between two snapshots of the pool."""
IDLE_SNAPSHOT_MS: Final = 600_000
"""The time between two snapshots while nothing changes."""
SURVEY_MS: Final = 20_000
"""How often the sensor looks for records itself, where no orchestrator does."""
SURVEY_S: Final = 5.0
"""How long that may take; a tick has 60 s, and other sensors wait for its thread."""


@dataclass(frozen=True, slots=True)
class Told:
    """What Dagster was told already: the sensor's cursor.

    Attributes:
        network: of which network.
        change: changes of the node table up to this one.
        snapshot_ms: when the last snapshot was taken, Unix milliseconds.
        snapshot_change: the newest change in that snapshot.
        survey_ms: when the sensor last looked for records itself.
        checks: the newest finding of each check.
    """

    network: str = ""
    change: int = 0
    snapshot_ms: int = 0
    snapshot_change: int = -1
    survey_ms: int = 0
    checks: Mapping[str, bool] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class News:
    """What a tick tells Dagster: events, partitions to add and to delete, and what it will have been told then."""

    events: Sequence[dg.AssetMaterialization | dg.AssetCheckEvaluation]
    add: Sequence[str]
    delete: Sequence[str]
    told: Told


@dg.sensor(
    name="ipns_nodes",
    minimum_interval_seconds=5,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Shows the network's nodes as partitions of the asset nodes, and lets batches wait for the first one.",
)
def ipns_nodes(
    context: dg.SensorEvaluationContext,
    network: dg.ResourceParam[NetworkView],
    database: dg.ResourceParam[Database],
    portal: dg.ResourceParam[Portal],
) -> dg.SensorResult:
    """Tell Dagster what has changed, at most `MAX_CHANGES` a tick, and give the pool of batches its slots."""
    now_ms = time.time_ns() // 1_000_000
    if not network.network:
        lift_pool(context.instance)
        return dg.SensorResult(skip_reason="this home is in no network: dim network init, or dim network join INVITE")
    told = read_cursor(context.cursor)
    if told.network != network.network:
        told = Told(network=network.network)
    notes: list[str] = []
    if network.survey is not None and now_ms - told.survey_ms >= SURVEY_MS:
        try:
            notes.append(portal.call(network.survey(SURVEY_S)))
        except DimError as error:  # what is known stays known; the records' ends decide
            context.log.warning(f"no records could be looked for: {error.message}")
            notes.append(f"no records could be looked for: {error.message}")
        now_ms = time.time_ns() // 1_000_000
        told = replace(told, survey_ms=now_ms)
    rows = network.table.rows()
    slots = wanted_slots(rows, network.in_use, configured_concurrency(context.instance))
    if limit_pool(context.instance, slots):
        notes.append(f"{slots} batches may compute at a time" if slots else "batches wait for a node")
    notes += [f"run {run} is gone and loses its slot" for run in _free_slots(context.instance, database, now_ms)]
    present = context.instance.get_dynamic_partitions(NODE_PARTITIONS)
    news = find_news(rows, told, present, now_ms, quorum=network.quorum, slots=slots)
    requests: list[dg.AddDynamicPartitionsRequest | dg.DeleteDynamicPartitionsRequest] = []
    if news.add:
        requests.append(node_partitions.build_add_request(list(news.add)))
    if news.delete:
        requests.append(node_partitions.build_delete_request(list(news.delete)))
    notes.append(f"{len(news.events)} events of {len(rows)} nodes")
    return dg.SensorResult(
        skip_reason="; ".join(notes),  # of runs: this sensor never asks for one
        asset_events=list(news.events),
        dynamic_partitions_requests=requests,
        cursor=write_cursor(news.told),
    )


def wanted_slots(rows: Iterable[NodeRow], in_use: bool, concurrency: int) -> int:
    """Say how many batches may compute at a time: none while no node takes work.

    Args:
        rows: the nodes of the table.
        in_use: batches run on these nodes; of others nothing is known here, so batches ask them themselves.
        concurrency: how many batches may compute at a time where nodes are.
    """
    return concurrency if not in_use or any(map(is_available, rows)) else 0


def find_news(
    rows: Sequence[NodeRow], told: Told, present: Collection[str], now_ms: int, *, quorum: int, slots: int
) -> News:
    """Find what Dagster has not been told yet.

    Args:
        rows: the whole node table.
        told: what it was told.
        present: the partitions of nodes that are there.
        now_ms: Unix time in milliseconds.
        quorum: how many nodes should take work.
        slots: how many batches may compute at a time.
    """
    newest = max((row.change for row in rows), default=0)
    if newest < told.change:  # another table, or an older copy of it
        told = Told(network=told.network, survey_ms=told.survey_ms)
    there = set(present)
    waiting = sorted((row for row in rows if row.change > told.change), key=lambda row: (row.change, row.name))
    changed = waiting[:MAX_CHANGES]
    change = told.change if not waiting else changed[-1].change if len(waiting) > MAX_CHANGES else newest
    events: list[dg.AssetMaterialization | dg.AssetCheckEvaluation] = [
        describe_node(row) for row in changed if row.state != "GONE" or partition_key(row) in there
    ]
    keys = {partition_key(row): row for row in rows if row.state != "GONE"}
    add = sorted(key for key, row in keys.items() if key not in there and row.change <= change)[:MAX_CHANGES]
    delete = sorted(there - keys.keys())[:MAX_CHANGES]
    findings = [judge_quorum(rows, quorum), judge_records(rows, now_ms)]
    snapshot = is_due(told, newest, now_ms)
    if snapshot:
        events.append(describe_pool(rows, now_ms, slots))
        told = replace(told, snapshot_ms=now_ms, snapshot_change=newest)
    events += [each.evaluation() for each in findings if snapshot or _is_new(each, told)]
    checks = {each.check: each.passed for each in findings}
    return News(events, add, delete, replace(told, change=change, checks=checks))


def is_due(told: Told, newest: int, now_ms: int) -> bool:
    """Tell whether a snapshot of the pool is to be taken: once a minute where something changed, else every ten."""
    passed = now_ms - told.snapshot_ms
    if passed < 0:  # the clock went back
        return True
    return passed >= (IDLE_SNAPSHOT_MS if newest == told.snapshot_change else SNAPSHOT_MS)


def read_cursor(cursor: str | None) -> Told:
    """Give what the cursor says; nothing was told where it is from somebody else."""
    try:
        value = json.loads(cursor or "{}")
        checks = {str(name): bool(passed) for name, passed in value.get("checks", {}).items()}
        numbers = {key: int(value.get(key, getattr(Told(), key))) for key in _NUMBERS}
        return Told(network=str(value.get("network", "")), checks=checks, **numbers)
    except (ValueError, TypeError, AttributeError):
        return Told()


def write_cursor(told: Told) -> str:
    """Give the cursor that says this."""
    return json.dumps(asdict(told))


def _is_new(finding: Finding, told: Told) -> bool:
    return told.checks.get(finding.check) is not finding.passed


def _free_slots(instance: dg.DagsterInstance, database: Database, now_ms: int) -> list[str]:
    lost = free_lost_slots(instance, Batches(database).heard_ms, now_ms)
    for run in lost:
        _log.warning("run %s has given no sign of life: its slot goes to others", run)
    return lost


_NUMBERS: Final = ("change", "snapshot_ms", "snapshot_change", "survey_ms")
_log = logging.getLogger(__name__)
